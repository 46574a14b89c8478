"""What another way to make intervals changes: the claims of all recorded studies before and after, with half-widths.

    python benchmarks/decisions.py --before COMMIT [--out benchmarks/results/decisions.json]

reads the findings.json of a commit and those of the working tree, claim by claim. Claims whose intervals are the same
are counted for each study; the others are listed. The output is the table of docs/results/shared_variance.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections import Counter
from pathlib import Path

from kleiber.types import Json

REPOSITORY = Path(__file__).parents[1]
DECIDED = ("supported", "contradicted")


def claims_at(commit: str, path: Path) -> list[Json]:
    """The claims of a recorded study at a commit."""
    command = ["git", "show", f"{commit}:{path.relative_to(REPOSITORY)}"]
    return json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout)["claims"]


def half_width(claim: Json) -> float | None:
    """Half the width of the interval of a claim; None without one."""
    return None if claim["hi"] is None else (claim["hi"] - claim["lo"]) / 2


def compared(commit: str) -> tuple[list[Json], dict[str, int]]:
    """Returns a row for each claim whose interval or decision differs, and the number of the others by study."""
    rows, equal = [], Counter()
    for path in sorted((REPOSITORY / "multirun" / "results").glob("*/findings.json")):
        after = json.loads(path.read_text(encoding="utf-8"))["claims"]
        for old, new in zip(claims_at(commit, path), after, strict=True):
            if (old["lo"], old["hi"], old["decision"]) == (new["lo"], new["hi"], new["decision"]):
                equal[path.parent.name] += 1
                continue
            widths = [half_width(claim) for claim in (old, new)]
            ratio = widths[1] / widths[0] if widths[0] and widths[1] is not None else None
            rows.append({
                "study": path.parent.name, "claim": new["text"], "before": old["decision"], "after": new["decision"],
                "half_width_before": widths[0], "half_width_after": widths[1], "ratio": ratio, "method": new["method"],
            })  # fmt: skip
    return rows, dict(equal)


def table(rows: list[Json]) -> str:
    """The rows in Markdown."""
    lines = ["| study | claim | decision | half-width before | after |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        same = row["before"] == row["after"]
        decision = row["after"] if same else f"{row['before']} -> **{row['after']}**"
        widths = [f"{row[f'half_width_{when}']:.4f}" for when in ("before", "after")]
        text = row["claim"].replace("|", "\\|")
        lines.append(f"| {row['study']} | {text} | {decision} | {widths[0]} | {widths[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows, equal = compared(options.before)
    record = {
        "before": options.before,
        "claims": len(rows) + sum(equal.values()),
        "changed": len(rows),
        "decided_more": sum(row["after"] in DECIDED and row["before"] not in DECIDED for row in rows),
        "decided_less": sum(row["before"] in DECIDED and row["after"] not in DECIDED for row in rows),
        "median_ratio": statistics.median(row["ratio"] for row in rows if row["ratio"] is not None),
        "wider": sum(row["ratio"] is not None and row["ratio"] > 1 for row in rows),
        "equal": equal,
        "rows": rows,
    }
    print(table(rows))
    print({name: value for name, value in record.items() if name != "rows"})
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
