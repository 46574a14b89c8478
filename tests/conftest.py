"""Shape strings are executed in tests and free in training; one thread, so that a result is the same on any machine."""

import gc
import os
from pathlib import Path

gc.disable()  # until everything is imported: see pytest_collection_finish

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # pytest sets the width of its own terminal for the processes that it starts

import jaxtyping

# Where tensors flow; the launcher's types are pydantic's business.
FLOWS = ("nn", "models", "objectives", "retention", "data", "evals", "training/step.py", "types")
SOURCE = Path(__file__).parents[1] / "src"


def modules_with_shapes() -> list[str]:
    """Returns the modules whose annotations have shapes: to check the types of all others takes seconds of imports."""
    folders = [*(SOURCE / "kleiber" / flow for flow in FLOWS), SOURCE / "kleiber_topics"]
    files = [file for folder in folders for file in ([folder] if folder.suffix else folder.rglob("*.py"))]
    names = [file.relative_to(SOURCE).with_suffix("").parts for file in files if "jaxtyping" in file.read_text()]
    return [".".join(name) for name in names]


hook = jaxtyping.install_import_hook(modules_with_shapes(), "beartype.beartype")

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any

import pytest
from forked_commands import forked_commands
from processes import PATIENCE
from small_run import REPOSITORY, TINY, last_of_each

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell sets it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


SERVER = ExitStack()
ALONE = "KLEIBER_TEST_ALONE"  # set in a process that runs a single test
CHECKED = ("adapters", "data", "evals", "models", "nn", "objectives", "retention", "topics", "types", "test_configs.py")


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs of the machine, which trainer=ddp would use, unless it is their tests that run (`-m gpu`)."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Checks shapes in the tests of where tensors flow and of every choice; whole runs elsewhere take a third less."""
    jaxtyping.config.update("jaxtyping_disable", item.path.relative_to(Path(__file__).parent).parts[0] not in CHECKED)


@cache
def test_server() -> list[str]:
    """The words in front of `pytest` that start it in a fork of a process which has imported what tests import."""
    folder = SERVER.enter_context(tempfile.TemporaryDirectory())
    return SERVER.enter_context(forked_commands(Path(folder), {**os.environ}))


def pytest_unconfigure() -> None:
    """Ends the server of `test_server`."""
    SERVER.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test with the marker `forks` in a process without threads.

    A fork of a process that has drawn a figure, or read a hub, can wait for ever for a lock that a thread held, because
    no thread is in the fork.
    """
    if pyfuncitem.get_closest_marker("forks") is None or ALONE in os.environ:
        return None
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "slow or not slow"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins are imported already
    done = subprocess.run(
        [*test_server(), "pytest", *options, pyfuncitem.nodeid],
        cwd=REPOSITORY, env={**os.environ, ALONE: "1"}, capture_output=True, text=True, timeout=4 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def pytest_collection_finish() -> None:
    """What has been imported stays as long as the process: garbage is not searched for in it again and again."""
    gc.freeze()
    gc.set_threshold(5_000, 10, 50)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Imported here, because the process that only hands tests to the workers needs no torch."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data beside the checkout; tests that need it are skipped where it is not."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the shared data beside the checkout")
    return folder


@pytest.fixture
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token cache that all runs of a test session share."""
    folder = tmp_path_factory.getbasetemp() / "token-cache"
    monkeypatch.setenv("KLEIBER_CACHE", str(folder))
    monkeypatch.delenv("KLEIBER_DATA", raising=False)
    return folder


@pytest.fixture
def launch(tmp_path: Path, cache_dir: Path) -> Callable[..., Path]:
    """Runs a tiny training in this process, as train.py would, and returns its folder, or the root if it is refused."""
    from kleiber.launch.main import main

    def run(*overrides: str, root: str = "runs", code: int = 0) -> Path:
        before = set((tmp_path / root).glob("*/*"))
        assert main([*TINY, f"root={tmp_path / root}", *overrides]) == code
        made = set((tmp_path / root).glob("*/*"))
        return next(iter(made - before or made), tmp_path / root)

    return run


@pytest.fixture(scope="session", autouse=True)
def interpolations_where_there_are_any() -> Iterator[None]:
    """Hydra's table for interpolations in a defaults list is made only where an entry has one: a third of composing."""
    from hydra._internal import defaults_list

    tabulate = defaults_list._create_interpolation_map

    def tabulate_if_used(overrides: Any, entries: list[Any], self_added: bool) -> Any:
        return tabulate(overrides, entries, self_added) if any(entry.is_interpolation() for entry in entries) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults_list, "_create_interpolation_map", tabulate_if_used)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """No test cuts the power, which is all that waiting for the disk is for; a killed process loses nothing written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def priced_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs count and measure in this process: a fresh one imports torch for seconds."""
    if request.node.get_closest_marker("process") is not None:
        return

    def estimate_costs(runs: Any, threads: int | None, describe: bool = False) -> dict[str, Any]:
        from kleiber.launch.price_estimate import answer_request

        return answer_request({"runs": {str(folder): config for folder, config in runs.items()}, "describe": describe})

    monkeypatch.setattr("kleiber.launch.price.estimate_costs", estimate_costs)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the checks of shapes that the hook installs, which raise falsely under torch.compile, and without what
    other tests have compiled: after many shapes of one function it compiles no more.
    """
    import torch

    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """As `launch`, one training a session for the same overrides, alone in its root: for runs that are only read."""
    from kleiber.launch.main import main

    made: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in made:
            root = tmp_path_factory.mktemp("once")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("KLEIBER_CACHE", str(tmp_path_factory.getbasetemp() / "token-cache"))
                patch.delenv("KLEIBER_DATA", raising=False)
                assert main([*TINY, f"root={root}", *overrides]) == 0
            (made[overrides],) = root.glob("*/*")
        return made[overrides]

    return run


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager]:
    """`with interrupted(n):` Ctrl-C comes right after the n-th checkpoint has its state."""
    import torch

    @contextmanager
    def after(number: int) -> Iterator[None]:
        save, calls = torch.save, []

        def then_stop(*arguments: Any, **keywords: Any) -> None:
            save(*arguments, **keywords)
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", then_stop)
            yield

    return after


@pytest.fixture
def process(tmp_path: Path, cache_dir: Path) -> Callable[..., subprocess.Popen]:
    """Starts train.py as a user would, in a process of its own."""

    def start(*overrides: str, root: str = "runs") -> subprocess.Popen:
        words = last_of_each([*TINY, f"root={tmp_path / root}", *overrides])
        command = [sys.executable, str(REPOSITORY / "train.py"), *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start
