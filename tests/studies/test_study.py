"""Options that every study refuses, in a command and in a study.yaml."""

import pytest
import yaml

from kleiber.config.check import check_node
from kleiber.config.errors import ConfigError
from kleiber.studies.report import study_of

WITH_INTERVALS = ["Panel", "Forgetting", "ForgettingLaw", "MupTransfer"]


@pytest.mark.parametrize("study", WITH_INTERVALS)
@pytest.mark.parametrize(
    "option", [{"level": 0.0}, {"level": 1.0}, {"level": 90}, {"seeds": 0}, {"max_cells": 0}], ids=str
)
def test_an_option_outside_of_its_range_is_refused(study, option, tmp_path):
    node = {"_target_": f"kleiber.studies.{study}", **option}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(node))
    for attempt in (lambda: check_node("study", node), lambda: study_of(tmp_path, [])):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert all(f"study.{name}={value} must " in str(caught.value) for name, value in option.items())
