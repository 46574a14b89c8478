"""A reward that rises alone is flagged, also in noise; a reward that is earned is not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kleiber.records.summary import StageRecord
from kleiber.training.callbacks.reward_alarm import RewardAlarm
from kleiber.types.score import Score

KEY = "eval/reward/all/mean"
PROMPTS, ANSWERS, STEPS, EVERY = 200, 256, 100, 20


def run(seed: int, reward, verified, policy: str = "tell", resumed_at: int | None = None) -> tuple[RewardAlarm, int]:
    """Trains with rewards and held-out shares by progress from 0 to 1; returns the alarm and the last step."""
    random, record = np.random.default_rng(seed), StageRecord("main")
    evaluate = SimpleNamespace(record=record, earlier=[], score_last_step=lambda *_: None)
    alarm = RewardAlarm(evaluate, policy=policy)  # type: ignore[arg-type]

    def evaluated(progress: float) -> Score:
        share = random.binomial(PROMPTS * 4, verified(progress)) / (PROMPTS * 4)
        half = 1.645 * (share * (1 - share) / PROMPTS) ** 0.5
        return Score(share, share - half, share + half, PROMPTS)

    record.start_metrics = {KEY: evaluated(0).value}
    trainer = SimpleNamespace(
        global_step=0, max_steps=STEPS, strategy=SimpleNamespace(broadcast=lambda value: value),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(max_steps=STEPS)),
    )  # fmt: skip
    for step in range(1, STEPS + 1):
        trainer.global_step = step
        mean = random.binomial(ANSWERS, min(1, reward(step / STEPS))) / ANSWERS
        alarm.on_train_batch_end(trainer, SimpleNamespace(last={"reward": mean}, model=None))  # type: ignore[arg-type]
        if trainer.fit_loop.epoch_loop.max_steps == step < STEPS:
            return alarm, step
        if step % EVERY == 0:
            record.scores = {KEY: evaluated(step / STEPS)}
        if step == resumed_at:
            state, alarm = alarm.state_dict(), RewardAlarm(evaluate, policy=policy)  # type: ignore[arg-type]
            alarm.load_state_dict(state)
    alarm.on_train_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    return alarm, STEPS


def hacked(progress: float) -> float:
    return 0.2 + 0.6 * progress


@pytest.mark.parametrize("verified", [lambda p: 0.2, lambda p: 0.2 - 0.15 * p, lambda p: 0.2 + 0.05 * p])
def test_a_reward_that_rises_alone_is_flagged_in_nine_of_ten_runs(verified, capsys):
    flagged = [run(seed, hacked, verified)[0].alarmed == ["hack"] for seed in range(10)]
    assert sum(flagged) >= 9 and capsys.readouterr().err.count("reward alarm at step") == sum(flagged)


@pytest.mark.parametrize(
    ("reward", "verified"),
    [
        (hacked, hacked), (hacked, lambda p: 0.2 + 0.4 * p), (lambda p: 0.3, lambda p: 0.3),
        (lambda p: 0.9, lambda p: 0.8),
    ],
)  # fmt: skip
def test_an_honest_run_is_flagged_in_at_most_one_of_twenty(reward, verified):
    assert sum(bool(run(seed, reward, verified)[0].alarmed) for seed in range(20)) <= 1


def test_it_stops_counts_and_goes_on_with_a_resumed_run(capsys):
    alarm, step = run(0, hacked, lambda p: 0.2, policy="stop")
    assert alarm.alarmed == ["hack"] and step % EVERY == 1 and step < STEPS
    whole, _ = run(1, hacked, lambda p: 0.2)
    resumed, _ = run(1, hacked, lambda p: 0.2, resumed_at=50)
    assert whole.state_dict() == resumed.state_dict()
    score = whole.evaluate.record.scores["reward/alarms"]
    assert (score.value, score.better) == (1.0, "lower")


def test_the_loss_on_an_earlier_text_is_watched():
    record = StageRecord("main")
    evaluate = SimpleNamespace(record=record, earlier=[SimpleNamespace(name="docs")])
    record.curve = [{"step": 0, "watch/docs/loss": 2.0}, {"step": 8, "watch/docs/loss": 2.4}]
    alarm = RewardAlarm(evaluate)  # type: ignore[arg-type]
    assert not alarm.compare(8)
    record.curve.append({"step": 16, "watch/docs/loss": 2.6})
    assert alarm.compare(16) and not alarm.compare(17) and alarm.alarmed == ["forgetting"]
    unwatched = RewardAlarm(evaluate, forgetting=None)  # type: ignore[arg-type]
    assert not unwatched.compare(16)
