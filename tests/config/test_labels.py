"""What tables and figures call the names of a config."""

import pytest

from kleiber.config.labels import data_label, readable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_qk_norm", "no QK-norm"), ("moe", "mixture of experts"), ("dense_total", "dense of equal parameters"),
        ("mcc", "Matthews correlation"), ("lstm_8", "LSTM 8"), ("plain", "plain"), ("full", "full"),
        ("width 64", "width 64"), ("boolq", "BoolQ"), ("ag_news", "AG News"),
        ("agem", "A-GEM"), ("lossfree", "loss-free"),
    ],
)  # fmt: skip
def test_names_have_spaces_and_the_labels_of_choices_and_others_stay(name, text):
    assert readable(name) == text


def test_data_has_spaces_for_slashes():
    labels = {"builtin/docs": "builtin docs", "sst2": "SST-2", "wise/0.5": "WiSE-FT 0.5"}
    assert {name: data_label(name) for name in labels} == labels


def test_an_extension_names_its_choices_in_the_headers_of_their_files(monkeypatch, tmp_path):
    choice = tmp_path / "somelab/conf/retention/mine.yaml"
    choice.parent.mkdir(parents=True)
    (tmp_path / "somelab/__init__.py").write_text("")
    header = "# A method.\n# Labels     mine_2: M-2, other: an other one\n"
    choice.write_text(f"{header}_target_: x\n# Labels     late: no\n")
    monkeypatch.chdir(tmp_path)
    assert readable("mine_2") == "mine 2"
    monkeypatch.setenv("KLEIBER_EXTENSIONS", "somelab")
    assert [readable(name) for name in ("mine_2", "other", "late")] == ["M-2", "an other one", "late"]
