"""The coordinate check passes muP, fails what is not muP, and `kleiber check mup` says which by its exit code."""

import pytest
import torch

from kleiber.launch.cli import main
from kleiber.nn.mup import MuP
from kleiber.optimizers.adamw import AdamW
from kleiber.optimizers.muon import Muon
from kleiber.runs import coordinate_check

WIDTHS = (32, 128)


def worst(name: str, optimizer, **options) -> float:
    return max(coordinate_check.ratios(coordinate_check.coordinates(name, optimizer, WIDTHS, 6, 2, **options)).values())


def test_mup_keeps_sizes_and_the_standard_parametrisation_does_not():
    assert worst("mup", AdamW(lr=0.02)) < 1.25
    assert worst("standard", AdamW(lr=0.02)) > 3


@pytest.mark.slow
def test_without_the_scale_of_the_learning_rate_mup_fails(monkeypatch):
    monkeypatch.setattr(MuP, "lr_scale", lambda self, role: 1.0)
    assert worst("mup", AdamW(lr=0.02)) > 1.5


@pytest.mark.slow
def test_muons_scale_is_the_root_of_adams():
    assert worst("mup", Muon(lr=0.02)) < 1.25


def test_what_is_measured_is_the_size_of_what_the_layers_give():
    model = coordinate_check.Transformer(64, 1, 32, context=33, num_heads=2)
    batch = coordinate_check.text(torch.Generator().manual_seed(0))
    sizes = coordinate_check.measured(model, batch)
    expected = model.head(model(batch).hidden).square().mean().sqrt().item()
    assert list(sizes) == ["attention 0", "mlp 0", "logits"] and sizes["logits"] == pytest.approx(expected)
    model.blocks[0].mlp.down.weight.data *= 3
    assert coordinate_check.measured(model, batch)["mlp 0"] == pytest.approx(3 * sizes["mlp 0"], rel=1e-5)


@pytest.mark.parametrize("scale, code", [pytest.param(1.0, 0, marks=pytest.mark.slow), (1000.0, 1)])
def test_the_command_draws_and_answers_by_its_exit_code(monkeypatch, tmp_path, capsys, scale, code):
    def made_up(name, *arguments):
        return [
            {"parametrization": name, "width": width, "step": 1, "layer": "mlp 0", "rms": 1 + scale * width / 1e4}
            for width in (16, 32)
        ]

    monkeypatch.setattr(coordinate_check, "coordinates", made_up)
    assert main(["check", "mup", "--out", str(tmp_path), "--widths", "16,32"]) == code
    assert ("pass" if code == 0 else "FAIL") in capsys.readouterr().out
    assert (tmp_path / "coordinates.png").read_bytes()[:4] == b"\x89PNG"
    assert "vega" in (tmp_path / "coordinates.html").read_text()


@pytest.mark.parametrize(
    "words", [["nup"], ["mup", "--widths", "16"], ["mup", "--widths", "a"], ["mup", "--optimizer", "x"]]
)
def test_what_cannot_be_checked_is_refused(words):
    assert main(["check", *words]) == 2
