"""The approaches on one fit, side by side: those that its rows allow, each with an interval.

A ladder of trunks goes by interpolation and simulated noise (`branched`), a plain table by its own budgets
(`approaches`). It refuses an exponent whose points it cannot give an interval.
"""

from kleiber.studies import branched
from kleiber.studies.approaches import Exponent, envelope, regress, vertices
from kleiber.studies.bootstrap import Draws, interval
from kleiber.studies.fit import depends
from kleiber.studies.noise_model import NoiseModel


def compare(model: NoiseModel, draws: Draws | None, level: float = 0.9) -> list[Exponent]:
    """Every approach that the rows allow: 1 and 2 need three usable budgets, 3 a law with a_opt."""
    problem, C = model.fit.problem, model.compute
    assert C is not None
    N, D, loss = problem.inputs["N"], problem.inputs["D"], problem.target
    if model.averaged and model.clusters is not None:
        found = branched.exponents(N, C, loss, model.components(), model.layout, level)
    else:
        both = (
            regress("1 envelope", envelope(N, C, loss), level),
            regress("2 isoflop", vertices(N, D, C, loss), level),
        )
        found = [one for one in both if one is not None]
    lost = {"A", "B"} & set(model.fit.dropped)
    if draws is not None and "a_opt" in draws.fit.law.derived and not lost:
        if depends(draws.fit.law.derive(draws.fit.untold())["a_opt"]):
            return found
        value = float(draws.fit.law.derive(draws.fit.values)["a_opt"][0])
        lo, hi = interval(draws.derive()["a_opt"], level)
        found.append(Exponent("3 parametric", value, float(lo), float(hi), float("nan")))
    return found
