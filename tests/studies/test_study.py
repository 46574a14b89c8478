"""Confidence levels that every study with intervals refuses."""

import pytest

from kleiber.studies.clm_vs_mlm import ClmVsMlm
from kleiber.studies.context import Context
from kleiber.studies.forgetting import Forgetting
from kleiber.studies.forgetting_law import ForgettingLaw
from kleiber.studies.joint_laws import DataRepeat, MoELaw
from kleiber.studies.mup_transfer import MupTransfer


@pytest.mark.parametrize("study", [Context, MoELaw, Forgetting, ForgettingLaw, MupTransfer, ClmVsMlm, DataRepeat])
@pytest.mark.parametrize("level", [0.0, 1.0, 90])
def test_a_level_that_no_interval_has_is_refused(study, level):
    with pytest.raises(ValueError, match=f"study.level={level}"):
        study(level=level)
