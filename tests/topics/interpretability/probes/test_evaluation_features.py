"""Features of the text are those of its characters, and controls depend on the type alone."""

import numpy as np

from kleiber_topics.interpretability.probes.evaluation import character_class, control_labels, positions_in_word


def test_features_and_controls():
    assert [character_class(c) for c in "a1 .é\x00"] == [0, 1, 2, 3, 0, 4]
    assert positions_in_word(["ab", " c", "d", " ", "x"]).tolist() == [2, 1, 2, 0]
    types, labels = np.array([5, 5, 7, 9, 7]), np.array([0, 1, 1, 1, 0])
    control = control_labels(types, labels, 0)
    assert control[0] == control[1] and control[2] == control[4]
    assert any((control_labels(types, labels, seed) != control).any() for seed in range(1, 5))
