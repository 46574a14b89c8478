"""Public training records judged by `kleiber compare`: which are beyond their noise, and which are not testable.

Reads tables of two contests whose logs are published under the MIT license: modded-nanogpt (least time or steps to a
fixed validation loss) and parameter-golf (lowest bits per byte in 10 minutes). Of modded-nanogpt each record claims a
mean loss below its target, of parameter-golf one below the number that it names as its baseline.

    python benchmarks/public_records.py FOLDER --out benchmarks/results/public_records.json
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import pandas as pd
from scipy import stats

from kleiber.studies.claims import Result
from kleiber.studies.compare.foreign_table import Options, compare_table, read_foreign
from kleiber.studies.compare.rows import Rows

TARGETS = {"short": 3.28, "medium": 2.92, "optimization": 3.28}  # nats per token
RULE = 0.01  # p value that the contest asks for
ROUNDING = 6e-4  # of a mean loss with three decimals, and a little more
OTHER_TASK = 0.2  # a loss further from the target is of another model or data


def modded_rows(folder: Path) -> Rows:
    """Returns a row for each different run, with the loss at the claimed steps where a record claims steps."""
    runs: Rows = pd.read_csv(folder / "modded_nanogpt_runs.csv", dtype={"run": str})
    runs = runs[runs["same_log_as"].isna()]
    loss = runs["val_loss"].where(runs["track"] != "optimization", runs["val_at_claimed"])
    runs = runs.assign(loss=loss, target=runs["track"].map(TARGETS)).dropna(subset=["loss"])
    runs = runs[(runs["loss"] - runs["target"]).abs() < OTHER_TASK]
    runs = runs[runs["group"].isna() | ~runs.duplicated(["track", "record", "run"])]
    return runs.assign(arm=runs["track"] + "/" + runs["record"], gap=runs["loss"] - runs["target"])


def golf_rows(folder: Path) -> Rows:
    """Returns a row for each seed of the records that name a baseline with its value, relative to that value."""
    runs: Rows = pd.read_csv(folder / "parameter_golf.csv")
    runs = runs.dropna(subset=["baseline_bpb", "val_bpb"]).drop_duplicates(["record", "seed"])
    return runs.assign(arm=runs["record"], gap=runs["val_bpb"] - runs["baseline_bpb"], run=range(len(runs)))


def judge(rows: Rows) -> list[Result]:
    """Decides for each record whether its mean lies below 0, all claims together at 0.9."""
    claims = [{"arm": arm, "direction": "lower"} for arm in rows["arm"].unique()]
    numbered = rows.assign(number=rows.groupby("arm").cumcount())
    table = read_foreign(numbered[["arm", "number", "gap"]], {"arm": "arm", "seed": "number", "value": "gap"})
    return [*compare_table(table, Options(claims=claims)).claims]


def summary(rows: Rows, results: list[Result]) -> dict[str, object]:
    """Returns how many records have which decision, and how many pass the contest's own rule by their logs."""
    sizes = rows.groupby("arm").size()
    p = {arm: p_value(part["gap"]) for arm, part in rows.groupby("arm") if len(part) > 1 and part["gap"].std() > 0}
    decisions = Counter(str(result.decision) for result in results)
    return {
        "records": len(sizes), "runs": len(rows), "decisions": dict(decisions),
        "one_run": int((sizes == 1).sum()), "runs_per_record_median": float(sizes.median()),
        "p_below_rule": sum(value < RULE for value in p.values()), "with_p": len(p),
        "undecided": sorted(str(r.claim.of["arm"]) for r in results if str(r.decision) == "undecided"),
        "contradicted": sorted(str(r.claim.of["arm"]) for r in results if str(r.decision) == "contradicted"),
    }  # fmt: skip


def p_value(gaps: Rows) -> float:
    """Returns the p value of a mean below 0, by Student's t."""
    test: Rows = stats.ttest_1samp(gaps, 0, alternative="less")
    return float(test.pvalue)


def reproduced(folder: Path, rows: Rows) -> dict[str, object]:
    """Returns how many claimed means and numbers of runs are those of the logs."""
    claims: Rows = pd.read_csv(folder / "modded_nanogpt_claims.csv").dropna(subset=["claimed_mean_loss"])
    claims = claims[~claims.duplicated(["track", "record"], keep=False)]
    logs = rows.groupby(["track", "record"])["loss"].agg(["mean", "size"]).reset_index()
    joined = claims.merge(logs, on=["track", "record"])
    differs = (joined["mean"] - joined["claimed_mean_loss"]).abs() > ROUNDING
    counted = joined.dropna(subset=["claimed_n"])
    return {
        "claims_with_a_mean": len(joined), "other_mean": int(differs.sum()),
        "other_mean_records": sorted(joined.loc[differs, "record"]),
        "largest_difference": round(float((joined["mean"] - joined["claimed_mean_loss"]).abs().max()), 5),
        "fewer_logs_than_claimed": int((counted["size"] < counted["claimed_n"]).sum()),
        "claims_with_a_number": len(counted),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    modded, golf = modded_rows(arguments.folder), golf_rows(arguments.folder)
    every: Rows = pd.read_csv(arguments.folder / "parameter_golf.csv")
    record = {
        "schema": "kleiber.public_records/1",
        "modded_nanogpt": {
            track: summary(part, judge(part)) for track, part in modded.groupby("track") if part["arm"].nunique() > 1
        },
        "modded_nanogpt_logs": reproduced(arguments.folder, modded),
        "parameter_golf": summary(golf, judge(golf)) | {"records_in_all": int(every["record"].nunique())},
    }
    print(json.dumps(record, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
