"""The study `isoflop`: the optimum of each compute budget from its own parabola, the law beside it and not before it.

It is the analysis of a ladder (`scaling`) told from approach 2. It refuses a headline from fewer than three vertices,
and an exponent beyond its budgets where the law of the same points is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kleiber.records.catalog import Run
from kleiber.studies.scaling import Scaling, within_budgets
from kleiber.studies.study import Findings


@dataclass(frozen=True)
class IsoFLOP(Scaling):
    """The options of `Scaling`; every budget counts, so min_tokens is low."""

    min_tokens: int | float | str = 1

    def analyse(self, runs: Sequence[Run]) -> Findings:
        findings = super().analyse(runs)
        assert findings.law is not None
        mine = [one for one in findings.law["approaches"] if one["approach"].startswith("2")]
        rows = [
            {"C": p["C"], "N_opt": p["N"], "lo": p.get("lo"), "hi": p.get("hi")} for one in mine for p in one["points"]
        ]
        if not mine:
            head = "Fewer than three budgets have a minimum inside their sizes: no exponent by parabolas yet."
        else:
            one = mine[0]
            head = (
                f"By parabolas at {len(one['points'])} budgets, N_opt ~ C^{one['a']:.3f}, {findings.law['level']:.0%} "
            )
            head += f"interval [{one['lo']:.3f}, {one['hi']:.3f}]"
            head = within_budgets(head, findings.law)
        return replace(findings, headline=head, tables={"Vertices": rows, **findings.tables})
