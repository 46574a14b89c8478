"""kleiber push: what a hub receives, and one line for each reason why it cannot be written."""

import os
import subprocess
import sys

import pytest
from fake_hub import TOKEN, fake_hub
from processes import PATIENCE

from kleiber.launch.cli import main


@pytest.fixture
def hub(monkeypatch):
    """A hub that huggingface_hub, which may be imported already, takes for the real one."""
    from huggingface_hub import constants

    with fake_hub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for module in [module for name, module in sys.modules.items() if name.startswith("huggingface_hub")]:
            for name in ("ENDPOINT", "_HF_DEFAULT_ENDPOINT"):
                if isinstance(vars(module).get(name), str):
                    monkeypatch.setattr(module, name, server.address)
        yield server


@pytest.fixture(autouse=True)
def run(monkeypatch, tmp_path):
    """A folder `my-run` that looks like a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-run").mkdir()
    (tmp_path / "my-run" / "summary.json").write_text("{}")
    (tmp_path / "my-run" / "config.yaml").write_text("{}")


@pytest.fixture
def exported(monkeypatch):
    """Exports two small files in place of a model."""

    def export(run, out, *_):
        out.mkdir()
        (out / "README.md").write_text(f"---\ntags: [kleiber]\n---\n# {run}\n")
        (out / "model.safetensors").write_bytes(b"\0weights")

    monkeypatch.setattr("kleiber.runs.hub_upload.export", export)


def test_the_files_of_a_run_are_committed_with_the_token(hub, exported, capsys):
    assert main(["push", "my-run", "jane/tiny"]) == 0
    assert hub.created[0]["name"] == "tiny" and hub.created[0]["organization"] == "jane"
    assert hub.created[0].get("visibility") is None and not hub.created[0].get("private")
    assert hub.files["jane/tiny", "main", "model.safetensors"] == b"\0weights"
    assert b"my-run" in hub.files["jane/tiny", "main", "README.md"]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert f"{hub.address}/jane/tiny/commit" in capsys.readouterr().out


def test_a_private_repository_and_a_branch(hub, exported):
    assert main(["push", "my-run", "jane/tiny", "--private", "--revision", "v2"]) == 0
    assert "private" in (hub.created[0].get("visibility"), "private" if hub.created[0].get("private") else None)
    assert hub.branches == ["v2"] and {branch for _, branch, _ in hub.files} == {"v2"}


@pytest.mark.parametrize("code", [401, 403, 500])
def test_a_refusal_exits_with_2_and_names_code_and_repository(hub, exported, capsys, code):
    hub.refusal = code
    assert main(["push", "my-run", "jane/tiny"]) == 2
    error = capsys.readouterr().err
    assert str(code) in error and "jane/tiny" in error and "Traceback" not in error


@pytest.mark.parametrize("name", ["tiny", "jane/tiny/x", "jane/../x", "/tiny"])
def test_a_malformed_name_is_refused(name, capsys):
    assert main(["push", "my-run", name]) == 2
    assert name in capsys.readouterr().err


def test_without_a_token_or_a_network_nothing_is_exported(monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr("kleiber.runs.hub_upload.export", lambda *_: pytest.fail("exported"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["push", "my-run", "jane/tiny"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", "my-run", "jane/tiny"]) == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.process
def test_a_real_run_is_pushed_to_the_hub_of_the_environment(launch):
    run = launch()
    with fake_hub() as server:
        environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-m", "kleiber", "push", str(run), "jane/tiny"]
        subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
    names = {path for _, _, path in server.files}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
