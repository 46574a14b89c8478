"""Whether a lower or a higher value of a measure is better."""

import pytest

from kleiber.data.labelled import METRICS
from kleiber.studies.compare.directions import HIGHER, LOWER, better_direction, direction_of
from kleiber.studies.compare.labels import MEASURES


@pytest.mark.parametrize(
    "measure",
    ["loss", "val/docs/loss", "val/docs/position/64", "moe/max_violation", "moe/dead", "drift/docs/kl", "val/stsb/rmse",
     "eval/degeneration/builtin/docs/sampled/loop_rate", "eval/degeneration/builtin/docs/sampled/rep_4",
     "eval/calibration/text/ece", "eval/calibration/text/scaled/brier_change", "eval/bias/occupations/gap/female",
     "eval/memorization/canaries/exposure/10", "privacy/epsilon", "latency/decode_p50_ms/1"],
)  # fmt: skip
def test_losses_and_faults_are_better_lower(measure):
    assert better_direction(measure) == "lower"


@pytest.mark.parametrize(
    "measure",
    ["val/sst2/accuracy", "eval/choice/piqa/accuracy_per_byte", "eval/calibration/text/accuracy_at_0.5",
     "eval/degeneration/builtin/docs/sampled/distinct_2", "moe/load_entropy", "latency/decode_tokens_per_s/8",
     "eval/attribution/recall/planted_first/occlusion", "val/recall/accuracy", "val/position/accuracy"],
)  # fmt: skip
def test_scores_and_speeds_are_better_higher(measure):
    assert better_direction(measure) == "higher"


def test_every_labelled_metric_of_a_task_has_a_direction_and_none_has_two():
    metrics = {metric for names in METRICS.values() for metric in names} | MEASURES.keys()
    assert {metric for metric in metrics if better_direction(metric) is None} == set() == LOWER & HIGHER


@pytest.mark.parametrize("measure", ["eval/calibration/text/temperature", "eval/recall/x/words", "val/docs/mine"])
def test_a_measure_of_unknown_direction_is_refused_unless_claims_of_one_direction_state_it(measure):
    assert better_direction(measure) is None

    def of(*directions):
        return [{"arm": "b", "against": "a", "direction": direction, "measure": measure} for direction in directions]

    assert direction_of(measure, of("lower", "not_higher", "within")) == "lower"
    assert direction_of(measure, of("not_lower")) == "higher"
    for claims in ((), of("within"), of("lower", "higher"), [{"arm": "b", "direction": "lower", "measure": "loss"}]):
        with pytest.raises(ValueError, match=f"study.measure={measure}.*study.claims"):
            direction_of(measure, claims)
    assert direction_of("loss", [{"direction": "higher"}]) == "lower", "a claim does not turn a loss around"
