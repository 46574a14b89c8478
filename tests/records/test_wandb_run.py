"""When W&B is used online: the key, the server, and what is printed."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb
from wandb_records import read

from kleiber.config.errors import ConfigError
from kleiber.records import wandb_run


def test_auto_without_a_key_is_offline_at_once_and_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "WANDB_API_KEY" in (wandb_run.unreachable() or "")
    assert wandb_run.choose_online("auto", tmp_path) is False
    assert capsys.readouterr().err == ""
    assert wandb_run.choose_online("online", tmp_path) is False
    assert "WANDB_API_KEY" in capsys.readouterr().err


def test_a_server_that_does_not_answer_costs_two_seconds_and_one_line(tmp_path, monkeypatch, capsys):
    waits: list[float] = []

    def connect(address: tuple[str, int], timeout: float) -> None:
        waits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")
    monkeypatch.setattr("socket.create_connection", connect)
    assert wandb_run.choose_online("auto", tmp_path) is False
    assert sum(waits) < 2 and len(waits) == 1
    err = capsys.readouterr().err
    assert "localhost" in err and err.count("\n") == 1


def test_without_a_home_folder_the_error_names_it(tmp_path, monkeypatch):
    """FAULTS 46: as in a container whose user has no entry in passwd."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(ConfigError, match="HOME=DIR"):
        wandb_run.start_run(tmp_path, "id", "name", "group", "train", online=False)


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with the status `code`."""

    code = 503

    def do_POST(self):
        self.send_response(self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing(monkeypatch):
    """A server that refuses every request, and the key that it is asked with."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()  # its service keeps the address of the server that it knew first
    yield
    wandb.teardown()
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("code", [401, 503])
def test_a_run_that_the_server_does_not_start_is_recorded_offline(tmp_path, monkeypatch, capfd, refusing, code):
    monkeypatch.setattr(Refusing, "code", code)
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT", 1.0)
    assert wandb_run.choose_online("auto", tmp_path) is True
    run = wandb_run.start_run(tmp_path, "id", "name", "group", "train", online=True)
    run.log({"loss": 1.0})
    run.finish()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B: ")]
    assert str(code) in line and str(tmp_path / "wandb") in line
    (path,) = tmp_path.glob("wandb/offline-run-*/run-id.wandb")
    assert [row["loss"] for row in read(path)["history"]] == [1.0]
    assert wandb_run.was_online(tmp_path) is False


@pytest.mark.parametrize(("mode", "online"), [("auto", True), ("online", True), ("offline", False)])
def test_with_key_and_server_the_mode_decides(tmp_path, monkeypatch, mode, online):
    monkeypatch.setattr(wandb_run, "unreachable", lambda: None)
    assert wandb_run.choose_online(mode, tmp_path) is online


@pytest.mark.parametrize(
    ("config", "node"),
    [({}, {}), ({"logger": {"csv": {}}}, {}), ({"logger": {"wandb": {"project": "lab"}}}, {"project": "lab"})],
)  # fmt: skip
def test_the_settings_of_a_run_are_found_where_it_has_them(config, node):
    assert wandb_run.node_of(config) == node
