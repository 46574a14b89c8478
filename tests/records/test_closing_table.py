"""The closing table says what its numbers are."""

from kleiber.records.closing_table import scores_by_domain


def test_a_loss_has_the_unit_of_what_its_objective_counts_and_only_the_weights_own_scores_are_told():
    found = {"val/x/loss": 0.5, "val/x/accuracy": 0.9, "val_ema/x/loss": 0.4, "drift/x/kl": 0.1, "wise/0/x/loss": 2.0}
    assert scores_by_domain(found, "dpo") == {"x": "0.5000 loss/sample, 0.9000 accuracy"}
    assert scores_by_domain({"val/x/loss": 0.5, "val/x/bits_per_byte": 1.0}, "sft") == {
        "x": "0.5000 nats/token, 1.0000 bits/byte"
    }
