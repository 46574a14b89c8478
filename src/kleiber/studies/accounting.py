"""The study `accounting`: how the fitted allocation exponent depends on how parameters and compute are counted.

The same runs are fitted once for each counting convention (with or without embeddings, 6ND or exact FLOPs), and the
report lists the exponent of each. It recommends none of them. Source: Porian et al. 2024, arXiv:2406.19146
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kleiber.records.catalog import Run
from kleiber.studies.scaling import Scaling, within_budgets
from kleiber.studies.study import Findings


@dataclass(frozen=True)
class Accounting(Scaling):
    """Fits the allocation exponent under every counting convention; the options are those of `Scaling`."""

    def analyse(self, runs: Sequence[Run]) -> Findings:
        findings = super().analyse(runs)
        assert findings.law is not None
        rows = [row for row in findings.law["accounting"] if row["approach"].startswith("3")]
        if not rows:
            return replace(
                findings,
                headline="The counting conventions could not be compared: the runs have only one, or no exponent.",
            )
        low, high = (pick(rows, key=lambda row: row["a"]) for pick in (min, max))
        head = (
            "Depending on how parameters and compute are counted, the allocation exponent is between "
            f"{low['a']:.3f} [{low['lo']:.3f}, {low['hi']:.3f}] ({low['convention']}) and {high['a']:.3f} "
            f"[{high['lo']:.3f}, {high['hi']:.3f}] ({high['convention']})"
        )
        return replace(findings, headline=within_budgets(head, findings.law))
