"""Random SIGKILLs over trees of stages, and after every tree the question whether its weights are the unbroken ones.

A third of the kills falls inside the writing of a checkpoint, a sixth each into validation and into a branch, the rest
at a random time. A kill counts only if a checkpoint existed and the run was unfinished. Each run is a fork of this
process, which has imported everything and computes nothing; the histogram says where the kills fell.

    python tests/faults/kill30.py [kills] [seed]
"""

import importlib
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from small_run import TINY

STAGES = ("trunk", "5120", "10240", "15360")
TREE = [*TINY, "stages=trunk_and_cooldowns", "stages.branches=[5120,10240,15360]", "trainer.max_steps=30"]
TREE += ["callbacks.log.every=1", "callbacks.checkpoints.every=4", "eval.every_steps=7", "eval.tokens=1024"]
WRITING = tuple(f"kleiber.training.checkpoint.{name}" for name in ("save_model", "_digest", "_sync", "_commit", "tidy"))
PLACES = ("start or end", "step", "checkpoint", "validation")


class Child:
    """One start of the tree in a fork; where it is can be read from outside, also after its death.

    `seconds` are those from the start of its first stage to its end; a kill at a random time falls between the two.
    """

    def __init__(self, root: Path, aim: str, rng: random.Random, typical_s: float) -> None:
        self.shared = mmap.mmap(-1, 2)  # place, stage
        self.after_s = rng.uniform(0, typical_s) if aim == "anywhere" else None
        target, number, branch = rng.choice(WRITING), rng.randint(1, 12), rng.randint(2, 4)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._instrument(aim, target, number if aim == "checkpoint" else 1 + number % 2, branch)
                os.close(1)
                os.close(2)
                os.open(os.devnull, os.O_WRONLY)
                os.dup2(1, 2)
                from kleiber.launch.main import main

                os._exit(main([*TREE, f"root={root}"]))
            finally:
                os._exit(99)

    def end(self) -> int:
        """The exit code, or minus the signal that ended it."""
        while not self.shared[1] and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        began = time.monotonic()
        if self.after_s is not None:
            time.sleep(self.after_s)
            os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.seconds = time.monotonic() - began
        return code

    def where(self) -> tuple[str, str]:
        return PLACES[self.shared[0]], "no stage" if not self.shared[1] else STAGES[self.shared[1] - 1]

    def _instrument(self, aim: str, target: str, number: int, branch: int) -> None:
        if aim == "checkpoint":
            wrap(target, deadly(number, lambda: self.shared[0] == 2))
        elif aim == "validation":
            wrap("kleiber.evals.perplexity.held_out_loss", deadly(number, lambda: True))
        elif aim == "branch":
            wrap("kleiber.training.lit.accumulate", deadly(number, lambda: self.shared[1] == branch))
        self._mark("kleiber.training.lit.accumulate", 1)
        self._mark("kleiber.training.checkpoint.save", 2)
        self._mark("kleiber.evals.perplexity.held_out_loss", 3)
        wrap("kleiber.runs.stage.run_stage", self._enter)

    def _enter(self, original: Callable, *arguments: Any, **keywords: Any) -> Any:
        stage = next(one for one in arguments if hasattr(one, "branch_step"))
        self.shared[1] = 1 + STAGES.index(stage.name)
        return original(*arguments, **keywords)

    def _mark(self, target: str, place: int) -> None:
        def marked(original: Callable, *arguments: Any, **keywords: Any) -> Any:
            before, self.shared[0] = self.shared[0], place
            try:
                return original(*arguments, **keywords)
            finally:
                self.shared[0] = before

        wrap(target, marked)


def wrap(target: str, around: Callable) -> None:
    module, name = target.rsplit(".", 1)
    owner = importlib.import_module(module)
    original = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **keywords: around(original, *arguments, **keywords))


def deadly(number: int, counts: Callable[[], bool]) -> Callable:
    """The `number`-th call that counts is a SIGKILL."""
    calls = []

    def kill(original: Callable, *arguments: Any, **keywords: Any) -> Any:
        if counts():
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    return kill


def facts(root: Path) -> tuple[list[str], list[Any]]:
    """Digests of each stage's last weights, and what the summary measured."""
    (folder,) = root.glob("*/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished", summary["status"]
    last = [max((folder / "stages" / stage / "checkpoints").glob("step-????????")) for stage in STAGES]
    digests = [json.loads((path / "meta.json").read_text())["sha256"]["model.safetensors"] for path in last]
    return digests, [{key: stage[key] for key in ("name", "metrics", "curve", "tokens")} for stage in summary["stages"]]


def counts(root: Path) -> bool:
    """Whether a kill found a checkpoint and an unfinished run."""
    written = any(root.glob("*/*/stages/*/checkpoints/step-????????/meta.json"))
    ended = [json.loads(path.read_text())["status"] != "running" for path in root.glob("*/*/summary.json")]
    return written and not any(ended)


def campaign(home: Path, kills: int = 30, seed: int = 0) -> Counter:
    """Kills by (aim, place, stage). Raises AssertionError when a tree ends otherwise than the unbroken one."""
    import kleiber.runs.run
    import kleiber.runs.stage  # noqa: F401

    rng = random.Random(seed)
    Child(home / "warm", "none", rng, 0).end()  # builds the token cache
    unbroken = Child(home / "unbroken", "none", rng, 0)
    assert unbroken.end() == 0
    typical_s, expected = unbroken.seconds, facts(home / "unbroken")
    aims = ["checkpoint"] * (kills // 3) + ["validation"] * (kills // 6) + ["branch"] * (kills // 6)
    aims += ["anywhere"] * (kills - len(aims))
    rng.shuffle(aims)
    histogram, trees, starts = Counter(), 1, 0
    while aims:
        starts += 1
        assert starts < 20 * kills, f"{len(aims)} kills still to come after {starts} starts"
        root = home / f"tree{trees}"
        child = Child(root, aims[-1], rng, typical_s)
        code = child.end()
        if code == 0:
            assert facts(root) == expected, f"{root}: another result than that of the unbroken run"
            trees += 1
        elif code == -signal.SIGKILL:
            if counts(root):
                histogram[(aims.pop(), *child.where())] += 1
        else:
            raise AssertionError(f"{root}: exit code {code}")
    while Child(home / f"tree{trees}", "none", rng, 0).end() != 0:
        pass
    assert facts(home / f"tree{trees}") == expected, f"tree{trees}: another result than that of the unbroken run"
    print(f"{sum(histogram.values())} kills that count in {starts} starts of {trees} trees, all ended bit-identical")
    return histogram


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("KLEIBER_CACHE", f"{home}/cache")
        histogram = campaign(Path(home), *numbers)
    print(f"{'aimed at':12} {'fell into':14} {'of stage':10} kills")
    for (aim, place, stage), number in sorted(histogram.items()):
        print(f"{aim:12} {place:14} {stage:10} {'#' * number} {number}")


if __name__ == "__main__":
    main()
