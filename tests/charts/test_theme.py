"""Labels at the ends of lines do not overlap."""

import numpy as np


def test_names_beside_lines_do_not_lie_on_one_another():
    from kleiber.charts.theme import apart

    moved = apart(np.array([4.16, 2.0, 4.159, 4.158]), 0.1)
    assert np.diff(np.sort(moved)).min() >= 0.1 - 1e-12
    assert moved[1] == 2.0 and moved[3] == 4.158, "what has room stays where it is"
    assert np.argsort(moved).tolist() == [1, 3, 2, 0]
