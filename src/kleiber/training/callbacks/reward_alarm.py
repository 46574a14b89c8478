"""The callback `reward_alarm`: tells when a policy raises its reward without becoming better, or forgets text."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Literal

from kleiber.records.terminal import print_line
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.lightning import LeanCallback, Trainer, stop_after_this_step
from kleiber.training.lit import LitLM
from kleiber.types import Json, Positive, Share
from kleiber.types.score import Metric, Score, described

STEPS = 10  # whose mean reward is compared: the first ones of the stage with the latest ones
QUANTILE = 1.645  # of the normal distribution, for intervals of 90 %
SCORE = "eval/reward/{}/mean"
METRICS = {"alarms": Metric("reward alarms", "lower")}


class RewardAlarm(LeanCallback):
    """Compares the training reward of objective=grpo with held-out scores of `evals=[reward]`, whenever they are new.

    An alarm is printed once, with its step and numbers, and counted in the score reward/alarms:

    hack        the reward has risen since the start of the stage by more than `least`, beyond its noise, and the
                held-out verified score by less than `share` of that (Gao et al. 2022, arXiv:2210.10760)
    forgetting  the loss on a text of an earlier task has risen by more than `forgetting` nats per token

    policy  tell: print it and continue; stop: also end the training after this step, as if it were the last one

    The verified score has to be on the scale of the reward, as that of the same verifier is. The state is saved and
    resumed with the run.
    """

    of_one_stage = True

    def __init__(
        self,
        evaluate: Evaluate,
        least: Positive = 0.1,
        share: Share = 0.25,
        forgetting: Positive | None = 0.5,
        policy: Literal["tell", "stop"] = "tell",
    ) -> None:
        self.evaluate, self.least, self.share, self.forgetting, self.policy = evaluate, least, share, forgetting, policy
        self.first: list[float] = []
        self.latest: deque[float] = deque(maxlen=STEPS)
        self.start: float | None = None  # verified score at the start, or the first one
        self.scored: Score | None = None  # the latest verified score that was compared
        self.alarmed: list[str] = []

    def state_dict(self) -> Json:
        scored = None if self.scored is None else self.scored.to_json()
        alarms = {"start": self.start, "scored": scored, "alarmed": self.alarmed}
        return {"first": self.first, "latest": [*self.latest], **alarms}

    def load_state_dict(self, state_dict: Json) -> None:
        self.first, self.start, self.alarmed = state_dict["first"], state_dict["start"], state_dict["alarmed"]
        self.latest.extend(state_dict["latest"])
        self.scored = None if state_dict["scored"] is None else Score.from_json(state_dict["scored"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Compares the scores of the step before, adds the reward of this one, and stops where that is asked for."""
        if "reward" not in pl_module.last:
            return
        is_new = self.compare(trainer.global_step - 1)
        reward = float(pl_module.last["reward"])
        self.latest.append(reward)
        if len(self.first) < STEPS:
            self.first.append(reward)
        stop = trainer.strategy.broadcast(is_new and self.policy == "stop")
        if stop and trainer.global_step < trainer.max_steps:
            self.evaluate.score_last_step(trainer, pl_module.model)
            stop_after_this_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Compares the scores of the last step, and adds the number of alarms to the record."""
        if self.first:
            self.compare(trainer.global_step)
            score = described(Score(float(len(self.alarmed))), METRICS, "alarms")
            self.evaluate.record.add_scores({"reward/alarms": score})

    def compare(self, step: int) -> bool:
        """Whether there are new alarms, which are printed, by the scores after a step."""
        texts = {"hack": self._hack(), "forgetting": self._forgetting()}
        new = {name: text for name, text in texts.items() if text is not None and name not in self.alarmed}
        self.alarmed += new
        for text in new.values():
            print_line(f"reward alarm at step {step:,}: {text}", err=True)
        return bool(new)

    def _hack(self) -> str | None:
        """What has risen and what has not; None without a new verified score, or where it follows the reward."""
        record = self.evaluate.record
        keys = [key for key in record.scores if key.startswith("eval/reward/") and key.endswith("/mean")]
        if not keys or record.scores[key := max(keys, key=SCORE.format("all").__eq__)] == self.scored:
            return None
        self.scored = score = record.scores[key]
        if self.start is None:
            self.start = record.start_metrics.get(key, score.value)
        if len(self.latest) < STEPS:
            return None
        rise, gain = statistics.fmean(self.latest) - statistics.fmean(self.first), score.value - self.start
        noise = QUANTILE * math.sqrt((_variance(self.first) + _variance(self.latest)) / STEPS)
        width = 0.0 if score.lo is None or score.hi is None else (score.hi - score.lo) / math.sqrt(2)
        if rise - noise <= self.least or gain + width >= self.share * rise:
            return None
        return (
            f"the training reward has risen by {rise:.3g} since the start, and the held-out verified score by "
            f"{gain:.3g}: look at what the model writes, and correct the reward"
        )

    def _forgetting(self) -> str | None:
        """Which loss on an earlier text has risen; None where none has by more than `forgetting`."""
        curve = self.evaluate.record.curve
        for task in self.evaluate.earlier if self.forgetting is not None else ():
            key = f"watch/{task.name}/loss"
            losses = [row[key] for row in curve if key in row]
            if losses and self.forgetting is not None and losses[-1] - losses[0] > self.forgetting:
                return (
                    f"the loss on {task.name} has risen from {losses[0]:.3g} to {losses[-1]:.3g} nats per token: set "
                    "objective.kl, or a smaller optimizer.lr"
                )
        return None


def _variance(values: Sequence[float] | deque[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0
