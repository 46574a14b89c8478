"""Instructions: prompts whose instructions a rule can verify."""

from kleiber.types import lazy_exports

EXPORTS = {
    "InstructSets": "instruct_sets",
    "Instructions": "evaluation",
}
NAMED = {"builtin/instructions": "evaluation.InstructionData"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
