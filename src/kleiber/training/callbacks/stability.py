"""The callback `stability`: alarms for spikes and for what precedes them, and what a run does at a spike.

An alarm is a bound of a measure; at a spike of the gradient it names the layer from which it comes.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor

from kleiber.nn.sharding import joint_passes
from kleiber.records.summary import StageRecord
from kleiber.records.terminal import print_line
from kleiber.training.callbacks.stability_measures import (
    Measures,
    add_updates,
    gradient_norms,
    layers_of,
    look_inside,
    matrices_of,
    rows_of,
    sample_entries,
)
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.training.step import Diverged, Rollback
from kleiber.types import Count, Json, Positive, Share
from kleiber.types.batch import Batch
from kleiber.types.score import Metric, Score, described

METRICS = {
    "alarms": Metric("stability alarms", "lower"),
    "alarms/{kind}": Metric("stability alarms of {kind}", "lower"),
    "attention_logit": Metric("largest attention logit", "lower"),
}
SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
SPIKES = {"loss_spike": "loss spike", "gradient_spike": "spike of the gradient", "nonfinite": "not finite"}
IN_A_ROW = 10  # consecutive skipped steps, beyond which the loss has changed for good and the run ends
PRINTED = 8  # alarms of one step that are printed
INSIDE = ("attention_logit", "attention_entropy", "activation", "log_z")  # measures that need a forward pass


@dataclass(frozen=True)
class Bound:
    """A bound of a measure, beyond which there is an alarm.

    key    argument of the callback that sets it
    value  None: no alarm
    below  whether values below the bound are beyond it, instead of values above
    measure  what is measured, as an alarm says it
    """

    key: str
    value: float | None
    measure: str
    below: bool = False

    def is_crossed(self, value: float) -> bool:
        """Whether a value is beyond the bound; NaN is."""
        if self.value is None:
            return False
        return not (value >= self.value if self.below else abs(value) <= self.value)


class Alarms:
    """Compares measures with their bounds. An alarm begins when a value crosses its bound, and ends when it is back.

    counts  number of alarms that have begun, by kind
    active  the alarms that have begun and not ended
    """

    def __init__(self, bounds: dict[str, Bound]) -> None:
        self.bounds, self.counts = bounds, dict[str, int]()
        self.active: set[str] = set()

    def count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def check(self, measures: dict[str, list[float]]) -> list[str]:
        """The texts of the alarms that begin, each with the layer, head or matrix, the value and the bound.

        measures  by name, such as attention_logit/<layer>, one value or one for each head
        """
        texts: list[str] = []
        for name, values in measures.items():
            kind, _, part = name.partition("/")
            bound = self.bounds[kind]
            for head, value in enumerate(values):
                alarm, place = f"{name}/{head}", f"layer {part}" if part.isdecimal() else part
                place += f", head {head}" if kind.startswith("attention") else ""
                if not bound.is_crossed(value):
                    self.active.discard(alarm)
                elif alarm not in self.active:
                    self.active.add(alarm)
                    self.count(kind)
                    side = "below" if bound.below else "above"
                    limit = f"callbacks.stability.{bound.key}={bound.value:g}"
                    texts.append(f"{bound.measure}{place and ' of '}{place} is {value:.3g}, {side} {limit}")
        return texts


def rescaled(norms: Mapping[str, float], total: float) -> dict[str, float]:
    """Gradient norms by part of the model as they were before clipping, when the global norm was `total`."""
    clipped = math.hypot(*norms.values())
    return {name: norm * total / clipped for name, norm in norms.items()} if clipped else dict(norms)


def relative_to_others(norms: Mapping[str, float]) -> dict[str, float]:
    """The gradient norm of each layer over the median of the other layers; empty where that median is 0."""
    layers = {name: norm for name, norm in norms.items() if name.startswith("layer ")}
    ratios: dict[str, float] = {}
    for name, norm in layers.items():
        others = [other for key, other in layers.items() if key != name]
        middle = statistics.median(others) if others else 0.0
        if middle:
            ratios[name] = norm / middle
    return ratios


def steepest_part(norms: Mapping[str, float], usual: Mapping[str, float]) -> str:
    """The part of the model whose gradient norm grew most over its usual one, and its share, such as "99 % of it in
    layer 1"; where norms are not finite, the parts with such norms. Without usual norms, the part with the largest one.
    """
    wrong = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if wrong:
        return "not finite in " + ("every layer" if len(wrong) == len(norms) else ", ".join(wrong[:3]))
    total = math.hypot(*norms.values())
    growth = {name: norm / usual.get(name, 0.0) if usual.get(name) else 0.0 for name, norm in norms.items()}
    name = max(norms, key=lambda part: (growth[part], norms[part]))
    return f"{norms[name] / total if total else 0:.0%} of it in {name}"


class Stability(LeanCallback):
    """Detects and prints spikes of the loss and of the gradient norm, and what precedes them inside the model.

    A spike begins with a step whose cross-entropy is above median + max(`deviations` robust standard deviations,
    `least` nats), or whose gradient norm is above `norms` medians, both over the last `window` steps. It ends with the
    first step below both thresholds. It is printed once, with its step, its samples and the layer whose gradient rose
    most. Logs train/spikes and train/skipped, counted from the start.

    Every `every` steps the inside of the model is measured on the first `rows` rows of the batch and logged as
    stability/<measure>/<layer>. An alarm is printed once when it begins, with its layer, head or matrix and the value;
    the summary has the number of alarms as stability/alarms and stability/alarms/<kind>, and the largest attention
    logit. null turns an alarm off. Models of Hugging Face have only the alarms of updates, gradients and log_z.

    max_attention_logit    of the largest |logit| of a head, as it enters the softmax; above 50 the weights become
                           one-hot (Dehghani et al. 2023, arXiv:2302.05442; Wortsman et al. 2023, arXiv:2309.14322)
    min_attention_entropy  of the entropy of a head's weights over that of uniform ones (Zhai et al. 2023,
                           arXiv:2303.06296)
    max_update_ratio       of |dW|/|W| of a weight matrix in one step, after the first `window` steps; about .001 is
                           usual
    max_activation         of the RMS of the residual stream after a block
    max_log_z              of the mean |log Z| of the output logits, which drifts without z-loss (Wortsman et al.)
    min_gradient_ratio     of the gradient norm of a block over the median of the other blocks: a vanishing gradient
    policy     at a spike: tell: print it and continue; skip: also keep weights and optimizer state as before the step;
               rollback: go back to the latest planned checkpoint and leave out the data from there to the spike
               (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1); halt: end the run as diverged
    nonfinite  halt: a loss or gradient that is not finite ends the run, or is rolled back where that is the policy;
               skip: the step is skipped
    tries      rollbacks of a stage; the next spike ends the run as diverged

    More than ten consecutive skipped steps end the run as diverged. The state is saved and resumed with the run.
    """

    def __init__(
        self,
        record: StageRecord | None = None,
        window: Annotated[int, Ge(10), Le(10**6)] = 50,
        deviations: Positive | None = 8.0,
        least: Positive = 0.3,
        norms: Annotated[float, Gt(1)] | None = 10.0,
        policy: Literal["tell", "skip", "rollback", "halt"] = "tell",
        nonfinite: Literal["halt", "skip"] = "halt",
        tries: Count = 3,
        every: Count = 50,
        rows: Count = 1,
        max_attention_logit: Positive | None = 50.0,
        min_attention_entropy: Share | None = 0.05,
        max_update_ratio: Positive | None = 0.2,
        max_activation: Positive | None = 1e4,
        max_log_z: Positive | None = 100.0,
        min_gradient_ratio: Share | None = 1e-3,
    ) -> None:
        self.record = StageRecord("") if record is None else record
        self.window, self.deviations, self.least, self.norms = window, deviations, least, norms
        self.policy, self.nonfinite, self.tries = policy, nonfinite, tries
        self.every, self.rows = every, rows
        self.alarms = Alarms({
            "attention_logit": Bound("max_attention_logit", max_attention_logit, "largest attention logit"),
            "attention_entropy": Bound(
                "min_attention_entropy", min_attention_entropy, "attention entropy over its maximum", below=True
            ),
            "update": Bound("max_update_ratio", max_update_ratio, "relative update |dW|/|W|"),
            "activation": Bound("max_activation", max_activation, "RMS of the residual stream"),
            "log_z": Bound("max_log_z", max_log_z, "mean log-normalizer of the output logits"),
            "gradient": Bound(
                "min_gradient_ratio", min_gradient_ratio, "gradient norm relative to the other layers", below=True
            ),
        })  # fmt: skip
        self.recent: deque[float] = deque(maxlen=window)
        self.recent_norms: deque[float] = deque(maxlen=window)
        self.spikes = self.skipped = self.in_a_row = 0
        self.inside = self.began = False  # a spike; its first step
        self.reason = ""  # of the latest spike
        self.largest_logit, self.looks = 0.0, 0
        self.gradients: dict[str, float] = {}  # norm by layer at the latest measurement
        self.before: list[Tensor] | None = None  # entries of the matrices before the step that is measured
        self.module: LitLM | None = None

    def state_dict(self) -> Json:
        """The windows, counts and alarms so far."""
        return {
            "recent": list(self.recent), "norms": list(self.recent_norms), "spikes": self.spikes,
            "skipped": self.skipped, "in_a_row": self.in_a_row, "inside": self.inside,
            "gradients": self.gradients, "largest_logit": self.largest_logit, "looks": self.looks,
            "counts": self.alarms.counts, "active": sorted(self.alarms.active), "rollbacks": self.record.rollbacks,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Json) -> None:
        """Continues with the windows, counts and alarms of `state_dict`."""
        self.recent = deque(state_dict["recent"], maxlen=self.window)
        self.recent_norms = deque(state_dict.get("norms", ()), maxlen=self.window)
        self.spikes, self.inside = state_dict["spikes"], state_dict["inside"]
        self.skipped, self.in_a_row = state_dict.get("skipped", 0), state_dict.get("in_a_row", 0)
        self.gradients, self.largest_logit = state_dict.get("gradients", {}), state_dict.get("largest_logit", 0.0)
        self.record.rollbacks, self.looks = state_dict.get("rollbacks", []), state_dict.get("looks", 0)
        self.alarms.counts, self.alarms.active = state_dict.get("counts", {}), set(state_dict.get("active", ()))

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        pl_module.guard, self.module = self, pl_module

    def on_train_end(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Adds the number of alarms, and the largest attention logit, to the record; nothing of an unmeasured run."""
        kinds = self.alarms.counts | ({"rollback": len(self.record.rollbacks)} if self.record.rollbacks else {})
        values = {"alarms": float(sum(kinds.values())), **{f"alarms/{kind}": float(n) for kind, n in kinds.items()}}
        if 0 < self.largest_logit < math.inf:
            values["attention_logit"] = self.largest_logit
        if self.looks or kinds:
            self.record.add_scores(
                {f"stability/{name}": described(Score(value), METRICS, name) for name, value in values.items()}
            )

    def refuses(self, loss: float, norm: float) -> bool:
        """Returns whether to skip the update of a step, and counts spikes.

        loss, norm  mean loss of the step in nats per token, and norm of its gradient; the same on every rank

        A step is a spike if its loss is above `threshold` or its gradient norm above `norms` times the median norm.
        `policy` decides whether spikes are skipped, `nonfinite` whether steps with nan or inf are. Raises Rollback
        and Diverged as the policy says, and Diverged after more than IN_A_ROW consecutive skipped steps.
        """
        finite = math.isfinite(loss) and math.isfinite(norm)
        usual = median(self.recent_norms, self.window)
        high = finite and self.above(loss)
        steep = finite and usual is not None and self.norms is not None and norm > self.norms * usual
        leaps = not finite or high or steep
        self.began = leaps and not self.inside
        self.spikes += self.began
        self.inside = leaps
        if self.began:
            kind = "nonfinite" if not finite else "loss_spike" if high else "gradient_spike"
            self.alarms.count(kind)
            self.reason = self._describe(kind, loss, norm)
        if not leaps:  # spikes do not count for the medians
            self.recent.append(loss)
            self.recent_norms.append(norm)
        if leaps and (finite or self.nonfinite == "halt"):
            self._apply_policy(finite)
        refused = leaps and (self.policy if finite else self.nonfinite) == "skip"
        self.skipped += refused
        self.in_a_row = self.in_a_row + 1 if refused else 0
        if self.in_a_row > IN_A_ROW:
            raise Diverged(
                f"the run diverged: more than {IN_A_ROW} consecutive steps were skipped as spikes, the last one with "
                f"loss {loss:g}; lower optimizer.lr or raise schedule.warmup_steps"
            )
        self.before = None
        if self.module is not None and not leaps and self._step() % self.every == 0:
            self._measure_gradients(self.module, norm)
        return refused

    def _apply_policy(self, finite: bool) -> None:
        """Raises Rollback or Diverged at a spike, where the policy is one of them."""
        if self.policy == "rollback" and len(self.record.rollbacks) < self.tries:
            raise Rollback(self._step(), self.reason, self.record.rollbacks)
        if self.policy == "rollback":
            self.reason += f"; the stage has already gone back {self.tries} times (callbacks.stability.tries)"
        if self.policy == "rollback" or (self.policy == "halt" and finite):
            raise Diverged(f"step {self._step():,}: {self.reason}")

    def _step(self) -> int:
        """The number of the step that is taken, from 1."""
        return 0 if self.module is None else self.module.global_step + 1

    def _measure_gradients(self, module: LitLM, norm: float) -> None:
        """Before the optimizer changes them, notes the gradients by layer and the entries of the matrices."""
        if self._bound("gradient") is not None:
            self.gradients = rescaled(gradient_norms(layers_of(module.model)), norm)
        if self._bound("update") is not None:
            self.before = sample_entries(matrices_of(module.model).values())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, outputs: object, batch: Batch, *_: object) -> None:
        """Prints a spike that begins, and measures the inside of the model where that is due."""
        if self.began:
            self._print_spike(trainer, batch)
        elif self.in_a_row:
            self._log(trainer)
        if trainer.global_step % self.every == 0 and not self.inside:
            self._look(trainer, pl_module, batch)

    def _look(self, trainer: Trainer, pl_module: LitLM, batch: Batch) -> None:
        """Measures the inside of the model, logs it and prints the alarms that begin."""
        model, measures = pl_module.model, Measures()
        reads_head = not pl_module.objective.outputs and self._bound("log_z") is not None
        if any(self._bound(kind) is not None for kind in INSIDE):
            with joint_passes(model), trainer.precision_plugin.forward_context():
                measures = look_inside(model, rows_of(batch, self.rows, model.context), reads_head)
        if self.before is not None and trainer.global_step > self.window:
            add_updates(measures, self.before, matrices_of(model))
        self.before = None
        values = measures.reduce().values()
        row = {f"stability/{name}": extreme(name, each) for name, each in values.items() if name[:7] != "update/"}
        updates = [each[0] for name, each in values.items() if name.startswith("update/")]
        row |= {"stability/update": max(updates)} if updates else {}
        row |= {f"stability/gradient/{layer}": norm for layer, norm in self.gradients.items()}
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)
        self.looks += 1
        logits = [max(each) for name, each in values.items() if name.startswith("attention_logit")]
        self.largest_logit = max([self.largest_logit, *logits])
        ratios = relative_to_others(self.gradients)
        texts = self.alarms.check({**values, **{f"gradient/{layer}": [ratio] for layer, ratio in ratios.items()}})
        if trainer.is_global_zero:
            hidden = [f"{len(texts) - PRINTED} more alarms"] if len(texts) > PRINTED else []
            for text in [*texts[:PRINTED], *hidden]:
                print_line(f"stability at step {trainer.global_step:,}: {text}", err=True)

    def _bound(self, kind: str) -> float | None:
        return self.alarms.bounds[kind].value

    def above(self, loss: float) -> bool:
        """Whether a step with that loss is a spike. Computes the threshold, which is slow, only where it matters."""
        usual = median(self.recent, self.window)
        if usual is None or loss <= usual + self.least:
            return False
        threshold = self.threshold()
        return threshold is not None and loss > threshold

    def threshold(self) -> float | None:
        """The loss in nats above which a step is a spike; None in the first half of the first window."""
        usual = median(self.recent, self.window)
        if usual is None or self.deviations is None:
            return None
        spread = SIGMA * statistics.median(abs(value - usual) for value in self.recent)
        return usual + max(self.deviations * spread, self.least)

    def _describe(self, kind: str, loss: float, norm: float) -> str:
        """The text of a spike: loss, gradient norm, their medians, and the layer whose gradient rose most."""
        usual = (median(self.recent, self.window), median(self.recent_norms, self.window))
        medians = ["" if value is None else f", median of the last steps {value:.3g}" for value in usual]
        text = f"{SPIKES[kind]}: loss {loss:.3g}{medians[0]}; gradient norm {norm:.3g}{medians[1]}"
        norms = {} if self.module is None else gradient_norms(layers_of(self.module.model))
        rose = kind != "loss_spike" or (usual[1] is not None and norm > 2 * usual[1])
        return f"{text}, {steepest_part(norms, self.gradients)}" if norms and rose else text

    def _log(self, trainer: Trainer) -> None:
        row = {"train/spikes": float(self.spikes)} | ({"train/skipped": float(self.skipped)} if self.skipped else {})
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)

    def _print_spike(self, trainer: Trainer, batch: Batch) -> None:
        self._log(trainer)
        if trainer.is_global_zero:
            samples = "" if batch.samples is None else f"; samples {batch.samples[:4].tolist()}..."
            done = "; this step was skipped" if self.in_a_row else ""
            print_line(f"stability at step {trainer.global_step:,}: {self.reason}{samples}{done}", err=True)


def median(values: Sequence[float], window: int) -> float | None:
    """The median of the values; None where they fill less than half of the window."""
    return statistics.median(values) if len(values) >= window // 2 else None


def extreme(name: str, values: Sequence[float]) -> float:
    """Of the heads of a layer, the value nearest to an alarm: the least entropy, or the largest of another measure."""
    return min(values) if name.startswith("attention_entropy") else max(values)
