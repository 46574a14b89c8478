"""The study `isoflop`: the compute-optimal model size at each budget, from a parabola in log N, and the allocation
exponent.

It analyzes the runs as `scaling` does, but its headline is the exponent of approach 2. There is no exponent from fewer
than three budgets with a minimum, and no extrapolation beyond the budgets if the fitted law is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kleiber.records.catalog import Run
from kleiber.studies.scaling import Scaling, within_budgets
from kleiber.studies.study import Findings


@dataclass(frozen=True)
class IsoFLOP(Scaling):
    """Fits a parabola at every compute budget; the options are those of `Scaling`.

    min_tokens is 1 by default, so that the budgets with short training count as well.
    """

    min_tokens: int | float | str = 1

    def analyse(self, runs: Sequence[Run]) -> Findings:
        findings = super().analyse(runs)
        law = findings.law
        assert law is not None
        parabolas = next((row for row in law["approaches"] if row["approach"].startswith("2")), None)
        if parabolas is None:
            head = (
                "No allocation exponent: fewer than three budgets have a minimum between their smallest and largest "
                "size."
            )
            return replace(findings, headline=head, tables={"Optimum by budget": [], **findings.tables})
        rows = [
            {"C": point["C"], "N_opt": point["N"], "lo": point.get("lo"), "hi": point.get("hi")}
            for point in parabolas["points"]
        ]
        head = (
            f"The compute-optimal size grows as N_opt ~ C^{parabolas['a']:.3f}, {law['level']:.0%} interval "
            f"[{parabolas['lo']:.3f}, {parabolas['hi']:.3f}], from parabolas at {len(rows)} compute budgets"
        )
        tables = {"Optimum by budget": rows, **findings.tables}
        return replace(findings, headline=within_budgets(head, law), tables=tables)
