"""The study `isoflop`: the compute-optimal size at each budget from a parabola in log N, and the exponent over budgets.

It analyzes a ladder as `scaling` does, with approach 2 as the headline: no exponent from fewer than three vertices, and
none beyond the budgets where the law of the same points is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kleiber.records.catalog import Run
from kleiber.studies.scaling import Scaling, within_budgets
from kleiber.studies.study import Findings


@dataclass(frozen=True)
class IsoFLOP(Scaling):
    """The options of `Scaling`; min_tokens is low, since every budget counts."""

    min_tokens: int | float | str = 1

    def analyse(self, runs: Sequence[Run]) -> Findings:
        findings = super().analyse(runs)
        law = findings.law
        assert law is not None
        parabolas = next((row for row in law["approaches"] if row["approach"].startswith("2")), None)
        if parabolas is None:
            head = "No exponent: fewer than three budgets have a minimum inside their sizes."
            return replace(findings, headline=head, tables={"Optimum by budget": [], **findings.tables})
        rows = [
            {"C": point["C"], "N_opt": point["N"], "lo": point.get("lo"), "hi": point.get("hi")}
            for point in parabolas["points"]
        ]
        head = (
            f"By parabolas at {len(rows)} budgets, N_opt ~ C^{parabolas['a']:.3f}, {law['level']:.0%} "
            f"interval [{parabolas['lo']:.3f}, {parabolas['hi']:.3f}]"
        )
        tables = {"Optimum by budget": rows, **findings.tables}
        return replace(findings, headline=within_budgets(head, law), tables=tables)
