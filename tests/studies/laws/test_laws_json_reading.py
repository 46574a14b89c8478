"""A laws.json is data: it is validated as a whole, and no code that it names is run unless the user names it too."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.launch.cli import main
from kleiber.studies.designs.isoflop import planning_law
from kleiber.studies.laws import analysis, laws_json
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.laws_json import law_by_option, law_of, read
from kleiber.studies.laws.table import load
from kleiber.studies.scaling import Scaling

from .. import ladders

POINT = ["N=1e9", "D=1e10"]
NEEDED = [
    "schema",
    "law",
    "objective",
    "params",
    "level",
    "domain",
    "draws",
    "bootstrap",
    "noise",
    "residual_sd",
    "misfit",
]


@pytest.fixture(scope="module")
def record():
    rows = ladders.twenty()
    table = load(pd.DataFrame({**rows, "L": ladders.noisy(ladders.loss(**rows), 1, 0.002)}), {})
    fitted = analysis.analyze(table, find("chinchilla").fix({"E": 1.7}), analysis.Options(bootstrap=40))
    return laws_json.without_nonfinite(fitted)


def written(tmp_path, content):
    path = tmp_path / "laws.json"
    path.write_text(json.dumps(content))
    return path


def predicted(path, capsys, *options):
    """Exit code and error of `kleiber predict`."""
    code = main(["predict", str(path), *POINT, *options])
    return code, capsys.readouterr().err.replace("\n", "")


@pytest.mark.slow
def test_a_written_record_is_read_with_its_law(record, tmp_path):
    path = tmp_path / "laws.json"
    laws_json.write(record, path)
    entry = read(path)
    assert {name: entry[name] for name in ("draws", "domain", "level", "noise")} == {
        name: record[name] for name in ("draws", "domain", "level", "noise")
    }
    assert law_of(entry).fixed == {"E": 1.7} and "accounting" not in entry
    laws_json.write({"schema": "kleiber.laws/1", "by": "set", "laws": {"a": record}}, path)
    assert read(path)["laws"]["a"] == entry


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "schema must be"), (b"[]", "laws.json: "), (b"[" * 10_000 + b"]" * 10_000, "recursion limit"),
        (b'{"schema": "kleiber.law/1", "law": "chin', "Invalid JSON"), (b"\0\0\0", "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b'{"schema": "kleiber.law/1", "law": "\xff\xfe"}', "Invalid JSON"), (b'"kleiber.law/1"', "laws.json: "),
        (b'{"schema": "kleiber.law/0"}', "'kleiber.law/1'"),
        (b'{"schema": "kleiber.laws/1", "laws": 3}', "by is missing"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_law_is_refused_by_its_name_and_the_reason(tmp_path, capsys, content, reason):
    path = tmp_path / "laws.json"
    path.write_bytes(content)
    code, error = predicted(path, capsys)
    assert code == 2 and str(path) in error and reason in error and "Traceback" not in error


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_key_is_named(record, tmp_path, capsys, name):
    code, error = predicted(written(tmp_path, {key: value for key, value in record.items() if key != name}), capsys)
    assert code == 2 and name in error


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"domain": {"N": [1e6]}}, "domain.N"), ({"level": 2}, "level"), ({"level": "0.9"}, "level"),
        ({"draws": [[1.0]]}, "draws"), ({"noise": None}, "noise"), ({"noise": {"between": 1.0}}, "noise.within"),
        ({"params": {"A": {"value": None}}}, "params.A.value"),
        ({"params": {"A": {"value": 1.0}}, "draws": []}, "params A"),
        ({"law": "chinchila"}, "'chinchila'"), ({"misfit": {"at_one_decade": -1.0}}, "misfit.at_one_decade"),
        ({"objective": {"kind": "other"}}, "objective.kind"), ({"law": ["chinchilla"]}, "law"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_by_its_key(record, tmp_path, capsys, change, named):
    code, error = predicted(written(tmp_path, {**record, **change}), capsys)
    assert code == 2 and named in error


def test_parameters_in_another_order_are_refused(record, tmp_path):
    with pytest.raises(ValueError, match="order"):
        read(written(tmp_path, {**record, "params": dict(reversed(record["params"].items()))}))


@pytest.fixture
def code_file(tmp_path):
    """A law in a file that leaves a trace when it is run, and its name as an option gives it."""
    path = tmp_path / "mine.py"
    path.write_text(
        "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"
        "from kleiber.studies.laws.law import Array, Exponent, Part\n"
        "def mine(N: Array, D: Array, *, E: Part, A: Part, B: Part, alpha: Exponent, beta: Exponent):\n"
        "    return E + A * N**-alpha + B * D**-beta\n"
    )
    return path, f"{path}:mine"


def test_a_file_of_code_is_run_only_if_the_command_names_it_too(record, tmp_path, capsys, code_file):
    path, name = code_file
    laws = written(tmp_path, {**record, "law": name})
    code, error = predicted(laws, capsys)
    assert code == 2 and name in error and not path.with_suffix(".ran").exists()
    code, error = predicted(laws, capsys, "--law", f"{path}:other")
    assert code == 2 and name in error and not path.with_suffix(".ran").exists()
    assert predicted(laws, capsys, "--law", name)[0] == 0 and path.with_suffix(".ran").exists()
    code, error = predicted(written(tmp_path, record), capsys, "--law", name)
    assert code == 2 and "chinchilla" in error, "an option that does not belong to the file is refused"


def test_no_study_and_no_design_runs_a_file_of_code(record, tmp_path, code_file):
    path, name = code_file
    with pytest.raises(ValueError, match=r"mine\.py"):
        planning_law(str(written(tmp_path, {**record, "law": name})))
    with pytest.raises(ValueError, match=r"mine\.py"):
        Scaling(law=name)
    with pytest.raises(ValueError, match=r"mine\.py"):
        find(name)
    assert not path.with_suffix(".ran").exists()
    assert law_by_option(name).inputs == ("N", "D") and np.isclose(planning_law(None)["E"], 0.977)


def test_a_design_plans_with_no_law_of_other_terms(record, tmp_path):
    assert planning_law(str(written(tmp_path, record))).keys() == {"E", "A", "B", "alpha", "beta"}
    product = {**record["params"], "F": {"value": 30000.0}}
    order = {name: product[name] for name in ("E", "A", "B", "F", "alpha", "beta")}
    rows = {"law": "interaction", "params": order, "draws": [], "untold": [], "flat": []}
    with pytest.raises(ValueError, match=r"L = E \+ A N\^-alpha"):
        planning_law(str(written(tmp_path, {**record, **rows})))
