"""What a claim says in words; whether it holds is tested with the studies that make it."""

from kleiber.studies.claims import gap


def test_a_difference_without_replicates_has_no_interval_in_words():
    assert gap(-0.0149, 0.02) == "-0.0149 +- 0.0200 nats"
    assert gap(-0.0149, float("inf")) == "-0.0149 nats (no interval)"
