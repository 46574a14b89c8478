"""Lightning is imported without the optional packages that make it slow, which can be imported afterwards."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from kleiber.training.lightning import import_lightning
import_lightning()
print(sorted({"scipy", "transformers", "matplotlib"} & set(sys.modules)))
import torch, torchmetrics
from torchmetrics.text import Perplexity
assert torchmetrics.MeanMetric()(torch.tensor([1.0, 3.0])) == 2
assert torchmetrics.classification.BinaryF1Score()(torch.tensor([1, 0]), torch.tensor([1, 1])) > 0.6
assert Perplexity()(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long)) > 3.9
import importlib.metadata, importlib.util, scipy.optimize
assert importlib.util.find_spec("transformers") and importlib.metadata.version("scipy")
"""


def run(**environment):
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.process
@pytest.mark.slow
def test_extras_stay_out_and_what_we_use_works():
    assert run() == "[]"


@pytest.mark.slow
@pytest.mark.process
def test_the_switch_brings_them_back():
    assert "scipy" in run(KLEIBER_FULL_IMPORTS="1")
