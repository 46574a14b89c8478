"""The law of a panel: fitted to the values of a measure, with keys of the panel as its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kleiber.studies.compare.rows import Rows
from kleiber.studies.designs.design import shortfall
from kleiber.studies.laws.analysis import Options, analyze_rows
from kleiber.studies.laws.catalog import find
from kleiber.studies.panel_declaration import entries, mapping, refuse_unknown
from kleiber.studies.panel_table import SAME
from kleiber.types import Json, Row

SPARE = 3  # rows that a law needs beyond its parameters
FLOPS = f"{SAME}flops"
ALIKE = 1.2  # largest ratio of the values of an input that do not tell its exponent, such as sizes up to a router's


@dataclass(frozen=True)
class PanelLaw:
    """A law as a panel declares it.

    name       of a law
    inputs     the key of the panel that each input of the law is: {N: size, D: tokens}
    measure    whose values it is fitted to
    bootstrap  number of resamples, of runs: branches of a trunk share its noise
    """

    name: str
    inputs: Mapping[str, str]
    measure: str
    bootstrap: int

    def plan_warnings(self, places: Sequence[Mapping[str, object]]) -> list[str]:
        """Returns a warning where planned runs have one value of an input; keys that only runs tell are not checked.

        places  values of the keys at each planned point
        """
        fixed = []
        for name, key in self.inputs.items():
            values = [float(value) for place in places if isinstance(value := place.get(key), (int, float))]
            if places and len(values) == len(places) and max(values) <= ALIKE * min(values):
                fixed.append(f"{name} ({key})")
        return [f"the law {self.name} cannot be fitted: all runs have one {' and '.join(fixed)}"] if fixed else []

    def fit(self, table: Rows, level: float) -> tuple[Json | None, list[Json]]:
        """Returns the content of laws.json and verdicts; None, and why, where the rows do not determine the law."""
        form, columns = find(self.name), [*self.inputs.values()]
        rows = table[table["measure"] == self.measure].dropna(subset=columns)
        rows = rows.sort_values([columns[0], "seed", *columns[1:]], ignore_index=True)
        rows = rows.astype(dict.fromkeys([*columns, "value"], float))
        why = (
            shortfall(form, {name: np.array(rows[column]) for name, column in self.inputs.items()}) if len(rows) else ""
        )
        if why is None and len(rows) < len(form.params) + SPARE:
            why = f"{len(rows)} rows are too few for the {len(form.params)} parameters of {self.name}"
        if why is not None:
            return None, [no_law(f"the law {self.name} is not fitted: {why or 'no run has the measure'}")]
        roles = {**self.inputs, "L": "value", **({"C": FLOPS} if rows[FLOPS].notna().all() else {})}
        try:
            law = analyze_rows(rows, form, roles, Options(bootstrap=self.bootstrap, cluster="run", level=level))
        except ValueError as error:
            return None, [no_law(f"the law {self.name} is not fitted: {error}")]
        return law, law["verdicts"]


def no_law(text: str) -> Json:
    """Returns the verdict that no law was fitted."""
    return {"code": "no_law", "level": "warn", "text": text}


def read_law(node: Row | None, measures: Sequence[str], keys: Sequence[str]) -> PanelLaw | None:
    """Returns the law of a panel's config. Raises ValueError, which names the key, for one that is invalid."""
    if node is None:
        return None
    entry = entries(node, "study.law", ("name", "inputs", "measure", "bootstrap"))
    inputs = {name: str(key) for name, key in mapping(entry.get("inputs"), "study.law.inputs").items()}
    form = find(str(entry.get("name")))
    if set(inputs) != set(form.inputs):
        raise ValueError(f"study.law.inputs={inputs} must name a key for each of {', '.join(form.inputs)}")
    refuse_unknown("study.law.inputs", [*inputs.values()], keys)
    measure, bootstrap = str(entry.get("measure", measures[0])), entry.get("bootstrap", 300)
    refuse_unknown("study.law.measure", [measure], measures)
    if not isinstance(bootstrap, int) or bootstrap < 0:
        raise ValueError(f"study.law.bootstrap={bootstrap} must be a whole number >= 0")
    return PanelLaw(form.name, inputs, measure, bootstrap)
