"""The design `schedule`: runs that determine a law of schedules, or the decay that such a law chooses for a budget."""

from __future__ import annotations

from pathlib import Path

from kleiber.config import Quantity, quantity
from kleiber.records import print_line
from kleiber.studies import read_record
from kleiber.studies.designs import LR, Arms, Cell, SweepContext, Values
from kleiber.types import Count, Positive


class Schedules:
    """Trains one model with different schedules and equal tokens, each with every seed.

    Without a law, the arms are `constant`, `cosine` and `wsd`; curves of two of them determine a law. With a law they
    are `best`, which is WSD with the decay that has the least predicted loss after `tokens`, `wsd` and `cosine`. The
    prediction, with its intervals, is printed before the first run. Every run has the name of its arm in `study.arm`.

    tokens  training tokens of a run
    law     laws.json of `kleiber fit --law schedule`, fitted to runs of this model; null: there is none yet
    lr      peak learning rate of all runs
    seeds   runs of each schedule
    """

    def __init__(self, tokens: Quantity, lr: Positive, law: str | None = None, seeds: Count = 3) -> None:
        self.tokens, self.lr, self.law, self.seeds = tokens, lr, law, seeds

    def cells(self, context: SweepContext) -> list[Cell]:
        """Returns the overrides of each cell, one seed after another; prints the prediction of a law."""
        if self.law is None:
            arms: dict[str, dict[str, Values]] = {name: {"schedule": name} for name in ("constant", "cosine", "wsd")}
        else:
            arms = {
                "best": {"schedule": "wsd", "schedule.decay": self.best_decay(context)},
                "wsd": {"schedule": "wsd"},
                "cosine": {"schedule": "cosine"},
            }
        shared = {LR: f"{self.lr:g}", "budget.tokens": self.tokens}
        return Arms({name: {**arm, **shared} for name, arm in arms.items()}, [], self.seeds).cells()

    def best_decay(self, context: SweepContext) -> float:
        """Returns the best share of the steps, and prints what the law predicts of it.

        Raises ValueError for a law that is none of schedules, or was refused when it was fitted.
        """
        from kleiber_topics.schedules.choice import best_decay, choice_lines

        record = read_record(Path(str(self.law)))
        if record is None or record["refused"] or record["law"] != "schedule":
            raise ValueError(
                f"design.law={self.law} must be the laws.json of `kleiber fit --law schedule`, and not one that was "
                "refused"
            )
        answer = best_decay(record, {"steps": int(quantity(self.tokens)) // context.batch_tokens, "lr": self.lr})
        print_line("\n".join(choice_lines(answer, record["level"])))
        return answer["decay"]["value"]
