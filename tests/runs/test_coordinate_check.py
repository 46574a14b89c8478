"""The coordinate check passes muP, fails other parametrizations, and sets the exit code of `kleiber check mup`."""

import pytest
import torch

from kleiber.launch.cli import main
from kleiber.nn.mup import MuP
from kleiber.optimizers.adamw import AdamW
from kleiber.optimizers.muon import Muon
from kleiber.optimizers.sgd import SGD
from kleiber.runs import coordinate_check

WIDTHS = (32, 128)


def largest_ratio(name: str, optimizer) -> float:
    rows = coordinate_check.activation_sizes(name, optimizer, WIDTHS, 6, 2)
    return max(coordinate_check.width_ratios(rows).values())


@pytest.mark.slow
def test_mup_keeps_activation_sizes_and_the_standard_parametrization_does_not():
    assert largest_ratio("mup", AdamW(lr=0.02)) < 1.25
    assert largest_ratio("standard", AdamW(lr=0.02)) > 3


@pytest.mark.slow
def test_mup_without_its_learning_rate_factors_fails(monkeypatch):
    monkeypatch.setattr(MuP, "lr_scale", lambda self, role, rule="adam": 1.0)
    assert largest_ratio("mup", AdamW(lr=0.02)) > 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "limit"), [(Muon(lr=0.02), 1.25), (SGD(lr=0.5), 1.3)], ids=["muon", "sgd"])
def test_mup_passes_with_the_rules_of_other_optimizers(optimizer, limit):
    assert largest_ratio("mup", optimizer) < limit


@pytest.mark.slow
def test_sgd_fails_with_the_rates_of_adam(monkeypatch):
    adam = MuP.lr_scale
    monkeypatch.setattr(MuP, "lr_scale", lambda self, role, rule="adam": adam(self, role))
    assert largest_ratio("mup", SGD(lr=1.0)) > 1.8


def test_sizes_are_those_of_the_outputs_of_the_layers():
    model = coordinate_check.Transformer(64, 1, 32, context=33, num_heads=2)
    batch = coordinate_check.random_walks(torch.Generator().manual_seed(0))
    sizes = coordinate_check.activation_rms(model, batch)
    expected = model.head(model(batch).hidden).square().mean().sqrt().item()
    assert list(sizes) == ["attention 0", "mlp 0", "logits"] and sizes["logits"] == pytest.approx(expected)
    model.blocks[0].mlp.down.weight.data *= 3
    assert coordinate_check.activation_rms(model, batch)["mlp 0"] == pytest.approx(3 * sizes["mlp 0"], rel=1e-5)


@pytest.mark.parametrize("scale, code", [pytest.param(1.0, 0, marks=pytest.mark.slow), (1000.0, 1)])
@pytest.mark.slow
def test_the_command_draws_a_figure_and_sets_its_exit_code(monkeypatch, tmp_path, capsys, scale, code):
    def sizes(name, *arguments):
        return [
            {"parametrization": name, "width": width, "step": 1, "layer": "mlp 0", "rms": 1 + scale * width / 1e4}
            for width in (16, 32)
        ]

    monkeypatch.setattr(coordinate_check, "activation_sizes", sizes)
    assert main(["check", "mup", "--out", str(tmp_path), "--widths", "16,32"]) == code
    assert ("pass" if code == 0 else "FAIL") in capsys.readouterr().out
    assert (tmp_path / "coordinates.png").read_bytes()[:4] == b"\x89PNG"
    assert "vega" in (tmp_path / "coordinates.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["nup"], "nup"),
        (["mup", "--widths", "16"], "--widths [16]"),
        (["mup", "--widths", "a"], "--widths a"),
        (["mup", "--optimizer", "x"], "--optimizer x"),
    ],
)
def test_wrong_options_are_refused_by_name(arguments, option, capsys):
    assert main(["check", *arguments]) == 2
    assert option in capsys.readouterr().err
