"""Bias: stereotypes in texts and in models, and how training text or an objective removes them."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Counterfactual": "counterfactual",
    "Occupations": "occupations",
    "Reweighted": "reweighted",
    "Bias": "evaluation",
    "Equalized": "equalized",
}
NAMED = {"builtin/occupations": "occupations.OccupationData"}
AUDITS = {"bias": "audit.BiasAudit"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
