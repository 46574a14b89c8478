"""Tables that band rules are compared on (bands.py): published ones, read from a folder, and `multirun/golden`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kleiber.records import catalog

GOLDEN = Path(__file__).parents[1] / "multirun" / "golden"
SETTLED = 1.99e6  # tokens from which the runs of `golden` follow its law


@dataclass(frozen=True)
class Source:
    """A table of one data set: `runs` names the runs, which two tables of several losses of them share."""

    data_set: str
    name: str
    frame: pd.DataFrame
    law: str = "chinchilla"
    cluster: str | None = None
    runs: str = ""


def sources(folder: Path) -> Iterator[Source]:
    """The tables that are there; a message names each that is not."""

    def exists(path: Path) -> bool:
        if not path.exists():
            print(f"{path.name}: not in {path.parent}, skipped", flush=True)
        return path.exists()

    if exists(path := folder / "gemstones_hot.jsonl"):
        roles = {"N": "params_active_precise", "D": "tokens", "L": "final_loss", "trunk": "run_name"}
        yield Source("gemstones", "gemstones", columns(pd.read_json(path, lines=True), **roles), cluster="trunk")
    for name in ("marin_comma", "marin_dclm"):
        if exists(path := folder / f"{name}.csv"):
            yield Source("marin", name, columns(pd.read_csv(path), N="params", D="tokens", L="loss"))
    if exists(path := folder / "steplaw_small.csv"):
        best = pd.read_csv(path).sort_values("loss").drop_duplicates(["N", "D"])
        yield Source("steplaw", "steplaw", columns(best, N="N", D="D", L="loss"))
    if exists(path := folder / "gadre.csv"):
        for corpus, rows in pd.read_csv(path).groupby("train"):
            for loss in ("loss_c4_val", "loss_openlm"):
                frame = columns(rows, N="N", D="D", L=loss).dropna().astype(float)
                if len(frame) >= 15:
                    yield Source("gadre", f"gadre {corpus} {loss}", frame, runs="gadre")
    if exists(path := folder / "clark_hash.csv"):
        roles = {"N": "dense_parameter_count", "X": "num_experts", "L": "loss_validation"}
        yield Source("clark", "clark", columns(pd.read_csv(path), **roles), "routed")
    if exists(path := folder / "porian_opt.csv"):
        for config, rows in pd.read_csv(path).groupby("config"):
            yield Source("porian", f"porian {config}", columns(rows, C="C", L="N_opt"), "power")
    if exists(GOLDEN):
        rows = catalog.frame([run for run in catalog.read_runs(GOLDEN) if run.finished])
        frame = columns(rows, N="active", D="tokens", L="loss", trunk="trunk")
        yield Source("golden", "golden", frame.drop(frame.index[frame.D < SETTLED]), cluster="trunk")


def columns(frame: pd.DataFrame, **roles: str) -> pd.DataFrame:
    """The columns of a law's inputs and its target, by role."""
    return pd.DataFrame({role: frame[name] for role, name in roles.items()})
