"""What pre-training gives: planned in rounds, tuned, paired with the same model from nothing, counted in labels."""

import json
import math

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.transfer import Transfer

from .transfer_runs import write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """From nothing .5 + .1 per decade of labels and of the seed; a base is worth a decade, but never above .75."""
    home = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        for share in (0.01, 0.1, 1):
            lines = [
                f"seed={seed}",
                "study.task=toy",
                "study.kind=mlm",
                f"study.share={share:g}",
                f"data.share={share}",
            ]
            score = 0.7 + 0.1 * math.log10(share) + 0.02 * seed
            write(home, [*lines, "study.start=scratch", "optimizer.lr=0.005"], accuracy=score, loss=0.5)
            write(home, [*lines, "study.start=docs/1M", "optimizer.lr=0.01"], accuracy=score + 0.1, loss=0.4)
            write(home, [*lines, "study.start=docs/2M", "optimizer.lr=0.01"], accuracy=score - 0.01 * seed, loss=0.4)
        lines = [f"seed={seed}", "study.task=toy", "study.kind=hf", "study.start=docs/1M", "study.share=1"]
        write(home, [*lines, "optimizer.lr=0.001"], accuracy=0.79 + 0.02 * seed, loss=0.4)
    other = ["seed=0", "study.task=toy", "study.kind=mlm", "study.start=scratch", "study.share=1", "optimizer.lr=0.002"]
    write(home, other, accuracy=0.99, loss=0.1)  # tried at one seed, and no part of the comparison
    return read_runs(home)


def test_every_figure_is_drawn(runs):
    pytest.importorskip("altair")
    made = Transfer().analyse(runs).figures
    assert list(made) == ["gaps", "labels", "transferred", "texts"]
    for name, make in made.items():
        assert "toy" in json.dumps(make().to_dict()), name
