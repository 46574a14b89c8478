"""Commands `kleiber`, and pytest, that start in milliseconds: forked from a process with all imports.

A command has the words, folder, variables and files of its caller. What it is forked from has computed nothing with
PyTorch and started no thread: it has composed a config, and has the scripts of pages from another process.
"""

import array
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from processes import PATIENCE, wait_for

# Needs only what Python has loaded anyway, so that it starts in 15 ms.
CALL = """
import array, json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    files = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))
    server.sendmsg([len(request).to_bytes(4, "big")], [files])
    server.sendall(request)
    answer = server.makefile()
    command = int(answer.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(command, number))
    code = int(answer.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


SIGNALS = {  # as Python has them; those of the server end it
    signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL,
}  # fmt: skip
# Without threads of their own, which `datasets` has.
MODULES = (
    "altair", "kleiber.launch.cli", "kleiber.launch.sweep", "kleiber.runs.huggingface", "kleiber.studies.report",
    "kleiber.studies.laws.analysis", "pandas", "scipy.optimize", "scipy.stats", "wandb",
)  # fmt: skip
FORKS_WITH = {"jemalloc_bg_thd"}  # threads that a fork does not need: jemalloc, which pyarrow brings, expects forks
SCRIPTS = "import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle())"


def preload() -> None:
    """Does what every command would do again in seconds: imports, reading the config files, bundling scripts."""
    import kleiber.launch.preload  # noqa: F401

    for module in MODULES:
        import_module(module)
    from kleiber.charts import page
    from kleiber.config.compose import Composer

    Composer("train").compose(["experiment=smoke"])
    bundled = subprocess.run([sys.executable, "-c", SCRIPTS], capture_output=True, check=True, text=True)
    page.chart_scripts = lambda: bundled.stdout
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    assert {task.joinpath("comm").read_text().strip() for task in tasks} <= FORKS_WITH, "a fork would lack a thread"
    gc.collect()
    gc.freeze()


def receive(caller: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    """The words, folder, variables and files of a caller."""
    files = array.array("i")
    size, ancillary, _, _ = caller.recvmsg(4, socket.CMSG_SPACE(3 * files.itemsize))
    for _, _, data in ancillary:
        files.frombytes(data)
    with caller.makefile("rb") as stream:
        words, folder, variables = json.loads(stream.read(int.from_bytes(size, "big")))
    return words, folder, variables, [*files]


def run_command(words: list[str], folder: str, variables: dict[str, str], files: list[int]) -> None:
    """Becomes the command, or pytest where that is the first word: this process ends with its exit code."""
    from kleiber.__main__ import main

    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    if words[:1] == ["pytest"]:
        for number, handler in SIGNALS.items():
            signal.signal(number, handler)
        code = pytest.main(words[1:])
        sys.stdout.flush()
        os._exit(code)
    sys.argv = [str(Path(sys.executable).parent / "kleiber"), *words]
    main()


def serve(address: str) -> None:
    """Runs commands until the process that started this one ends, each in a process that a second one waits for."""
    preload()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        server.settimeout(1)
        parent = os.getppid()
        while os.getppid() == parent:
            try:
                caller, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork():
                caller.close()
                continue
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request = receive(caller)
            command = os.fork()
            if command == 0:
                caller.close()
                run_command(*request)
            caller.sendall(f"{command}\n".encode())
            _, status = os.waitpid(command, 0)
            caller.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)


@contextlib.contextmanager
def forked_commands(folder: Path, variables: dict[str, str]) -> Iterator[list[str]]:
    """Starts a server with these variables; gives the words in front of those of a command of kleiber, or of pytest."""
    address = folder / "commands"
    with open(folder / "commands.log", "w") as log:
        server = subprocess.Popen([sys.executable, __file__, str(address)], env=variables, stdout=log, stderr=log)
    try:
        wait_for(lambda: address.exists() or server.poll() is not None)
        assert server.poll() is None, (folder / "commands.log").read_text()
        yield [sys.executable, "-I", "-S", "-c", CALL, str(address)]
    finally:
        server.kill()
        server.wait(PATIENCE)


if __name__ == "__main__":
    serve(sys.argv[1])
