"""A stream begins with one kind of recipe, in a folder that is there."""

import pytest

from kleiber_topics.gate.actions import begin


@pytest.mark.parametrize(
    ("command", "overrides", "options", "key"),
    [
        (None, None, {}, "--command"),
        ("python a.py", "seed=1", {"metric": "loss"}, "--overrides"),
        ("python a.py", None, {}, "--metric"),
        (None, "seed=1", {"metric": "loss"}, "--metric"),
        ("python a.py", None, {"metric": "loss", "measure": "loss"}, "--measure"),
        ("python a.py", None, {"metric": "loss", "cwd": "nowhere"}, "--cwd"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name_and_begin_nothing(tmp_path, command, overrides, options, key):
    with pytest.raises(ValueError, match=key):
        begin(tmp_path / "stream", command, overrides, options)
    assert not (tmp_path / "stream").exists()
