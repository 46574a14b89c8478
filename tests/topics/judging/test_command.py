"""`kleiber judge`: its refusals, simulated judges, its result, and the whole loop from two models to a better one."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request

import pytest
from processes import PATIENCE

from kleiber.launch import cli
from kleiber.launch.cli import main
from kleiber_topics.judging import command, comparisons
from kleiber_topics.judging.comparisons import arrange
from kleiber_topics.judging.judgments import read_judgments
from kleiber_topics.judging.session import Session

PROMPTS = [f"p{i}" for i in range(30)]


@pytest.fixture
def models(tmp_path, monkeypatch) -> list[str]:
    """Two folders whose models answer "happy" and "sad"; the second one is the better one."""
    paths = [str(tmp_path / name) for name in ("worse", "better")]
    for path in paths:
        (tmp_path / path).mkdir()
    pairs = [(f"a sad dog {i}", f"a happy dog {i}") for i in range(30)]
    rows = arrange(PROMPTS, pairs, (paths[0], paths[1]), "plain", 0)
    monkeypatch.setattr(comparisons, "answer", lambda settings: rows)
    monkeypatch.chdir(tmp_path)
    return paths


def simulate(models: list[str], *options: str) -> dict:
    assert main(["judge", *models, "--simulate", "words:happy", "--json", "r.json", *options]) == 0
    with open("r.json") as file:
        return json.load(file)


def test_a_judge_without_noise_always_prefers_the_better_model(models, capsys):
    result = simulate(models)
    assert result["win_rate"] == {"value": 1.0, "lo": pytest.approx(0.917, abs=1e-3), "hi": pytest.approx(1), "n": 30}
    assert result["models"] == models and result["agreement"] is None
    assert f"win rate of {models[1]} against {models[0]}: 1.000" in capsys.readouterr().out
    assert len(read_judgments(command.Path("judgments.jsonl"))) == 30
    simulate(models)  # judges nothing twice
    assert len(read_judgments(command.Path("judgments.jsonl"))) == 30


@pytest.mark.slow
def test_noise_lowers_the_win_rate_and_the_agreement(models):
    result = simulate(models, "--noise", "0.2", "--annotators", "4", "--out", "n.jsonl")
    assert 0.7 < result["win_rate"]["value"] < 0.9 and result["win_rate"]["lo"] > 0.5
    assert 0 < result["agreement"]["value"] < 0.7 and set(result["judges"]) == {f"simulated-{i}" for i in range(4)}
    perfect = simulate(models, "--annotators", "2", "--out", "p.jsonl")
    assert perfect["agreement"] is None and perfect["win_rate"]["value"] == 1  # chance would agree as well
    biased = simulate(models, "--first", "100", "--out", "f.jsonl")
    assert biased["choices"]["left"] == 30
    longer = simulate(models, "--longer", "-1000", "--out", "l.jsonl")
    assert longer["win_rate"]["value"] < 0.1
    apart = simulate(models, "--disagreement", "100", "--annotators", "2", "--out", "d.jsonl")
    assert apart["agreement"]["value"] < 0.6


def test_a_report_reads_the_file_alone(models, capsys):
    simulate(models)
    assert main(["judge", "--report", "--json", "again.json"]) == 0
    assert json.loads(command.Path("again.json").read_text()) == json.loads(command.Path("r.json").read_text())
    assert main(["judge", "--report", "--out", "none.jsonl"]) == 2
    assert "--out none.jsonl has no judgments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a"], "needs two different models, and got 1"), (["a", "a"], "needs two different models"),
        (["a/b", "a/c"], "must be the folder of a run"),
        (["{0}", "{1}", "--template", "x"], "--template x must be one of"),
        (["{0}", "{1}", "--noise", ".1"], "--noise 0.1 is only read by --simulate"),
        (["{0}", "{1}", "--simulate", "x"], "--simulate x must be variety or words:"),
        (["{0}", "{1}", "--data", "d", "--prompts", "p"], "both give prompts"),
        (["{0}", "{1}", "--out", "no/j.jsonl"], "must be in an existing folder"),
        (["{0}", "--report"], "--report reads --out judgments.jsonl alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(models, options, message, capsys):
    assert main(["judge", *(option.format(*models) for option in options)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_page_is_served_until_it_is_finished(models, tmp_path, monkeypatch, capsys):
    """A script in place of a judge follows the printed address."""
    session = Session(arrange(PROMPTS[:1], [("x", "y")], ("a", "b"), "plain", 0), tmp_path / "j.jsonl", "me")
    outcome: list[None] = []
    addresses: list[str] = []
    monkeypatch.setattr(command, "print_line", lambda text, err=False: addresses.append(text))
    thread = threading.Thread(target=lambda: outcome.append(command.run_page(session, 0)))
    thread.start()
    while not addresses:
        thread.join(0.01)
    url = addresses[0].split()[1]

    def post(place: str, body: dict) -> dict:
        request = urllib.request.Request(url + place, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=PATIENCE))

    assert post("choose", {"item": 0, "choice": "left"})["item"] is None
    post("finish", {})
    thread.join(5)
    assert outcome == [None] and len(read_judgments(tmp_path / "j.jsonl")) == 1
    command.run_page(session, 0)  # nothing is left to judge


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_the_page_with_its_code_and_keeps_what_is_judged(models, monkeypatch, capsys, number, code):
    class Signalled(Session):
        @property
        def finished(self):
            os.kill(os.getpid(), number)
            return threading.Event()

        @finished.setter
        def finished(self, value):
            pass

    monkeypatch.setattr(command, "Session", Signalled)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main(["judge", *models]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped" in capsys.readouterr().err


@pytest.mark.slow
def test_judges_in_four_processes_write_every_judgment_once(models, monkeypatch):
    """FAULTS 113."""
    options = ["--simulate", "words:happy", "--annotators", "6", "--noise", "0.3"]
    children = []
    for _ in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            os._exit(main(["judge", *models, *options]))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    together = read_judgments(command.Path("judgments.jsonl"))
    assert len(together) == len({judgment.key for judgment in together}) == 180
    assert main(["judge", *models, *options, "--out", "alone.jsonl"]) == 0
    alone = read_judgments(command.Path("alone.jsonl"))
    assert sorted(together, key=lambda j: j.key) == sorted(alone, key=lambda j: j.key)


@pytest.mark.slow
def test_two_runs_are_compared_and_the_judgments_train_dpo_kto_and_reward(launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [str(launch(f"seed={seed}", "name=models")) for seed in (0, 1)]
    # Cold enough that answers repeat something, and few pairs are ties.
    options = ["--simulate", "variety", "--limit", "30", "--tokens", "16", "--prompt-tokens", "24"]
    options += ["--template", "plain", "--temperature", "0.3"]
    assert main(["judge", *runs, *options]) == 0
    for objective, data in (("dpo", "preference"), ("reward", "preference"), ("kto", "unpaired")):
        start = [
            f"objective={objective}",
            f"data={data}",
            "init=checkpoint",
            f"init.path={runs[0]}",
            f"name={objective}",
        ]
        assert launch(*start, f"data.path={tmp_path / 'judgments.jsonl'}").joinpath("summary.json").is_file()


def test_the_help_of_kleiber_lists_the_command_and_it_has_a_help(capsys):
    assert main(["--help"]) == 0 and "judge" in capsys.readouterr().out
    assert main(["judge", "--help"]) == 0 and "kleiber judge" in capsys.readouterr().out


def test_another_command_does_not_import_it(monkeypatch):
    monkeypatch.setattr(cli, "import_offer", lambda *_: pytest.fail("imported"))
    command_line = cli.add_offered_commands(["runs", "multirun"])
    assert [command.name for command in command_line.registered_commands] == ["runs"]
