"""Callbacks of Lightning that cannot work are refused with what does the same here."""

from importlib import import_module

import pytest

from kleiber.config.cross_checks import LIGHTNING, REPLACEMENTS, check_lightning_callbacks
from kleiber.config.errors import ConfigError
from kleiber.training.lightning import import_lightning


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_callback_that_cannot_work_is_refused_with_its_replacement(name):
    """FAULTS 126."""
    import_lightning()  # first of all: it imports half as much
    assert hasattr(import_module(LIGHTNING.rstrip(".")), name)
    with pytest.raises(ConfigError) as refused:
        check_lightning_callbacks({"mine": {"_target_": f"{LIGHTNING}{name}"}})
    assert f"callbacks.mine={name}" in str(refused.value) and REPLACEMENTS[name] in str(refused.value)


def test_checks_at_the_end_of_epochs_are_refused():
    node = {"_target_": f"{LIGHTNING}EarlyStopping", "monitor": "x", "check_on_train_epoch_end": True}
    with pytest.raises(ConfigError, match="check_on_train_epoch_end"):
        check_lightning_callbacks({"stop": node})


def test_other_callbacks_are_accepted():
    nodes = {name: {"_target_": f"{LIGHTNING}{name}"} for name in ("EarlyStopping", "Timer", "DeviceStatsMonitor")}
    check_lightning_callbacks({**nodes, "log": {"_target_": "kleiber.training.callbacks.Log"}, "samples": None})
    check_lightning_callbacks(None)
