"""Every command in a ```bash block of a page works: each page's blocks run in a folder of their own.

Commands that train are capped by experiment=smoke. A command ends with 0, or with the code of a comment `# exit 3`.
The commands of kleiber are forked from a process that has imported PyTorch: else importing it took half of the time.
The pages that are tried first, and those about W&B, mirror their runs to it offline, which takes a third of the time of
so short a run; on other pages, commands that choose no logger have that of CSV.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_commands import forked_commands
from processes import PATIENCE
from small_run import REPOSITORY

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
WRITTEN = [*sorted(DOCS.rglob("*.md")), *sorted((REPOSITORY / "src/kleiber_topics").glob("*/README.md"))]
PAGES = [path for path in WRITTEN if ".template" not in path.name and BLOCK.search(path.read_text(encoding="utf-8"))]
FIRST = ("index.md", "exit_codes.md", "tutorials/first_run.md", "guides/resume.md", "guides/troubleshooting.md")
SHORT = (
    "docs/guides/wandb_sweep.md", "docs/tutorials/reinforcement_learning.md",
    "docs/tutorials/translation.md", "src/kleiber_topics/calibration/README.md",
    "src/kleiber_topics/recall/README.md", "src/kleiber_topics/rewards/README.md",
)  # fmt: skip
LONG = set(PAGES) - {DOCS / name for name in FIRST} - {REPOSITORY / name for name in SHORT}
EXPECTED = re.compile(r"^(?P<command>(?:kleiber|python) [^\n]*?)\s*# exit (?P<code>\d+)$", re.MULTILINE)
PROLOGUE = """
set -eu
smoke() {  # trains as the page says, but twenty steps at most
    local words=() chosen=smoke logger=$LOGGER word
    for word in "$@"; do
        case "$word" in
            experiment=*) word="${word#experiment=}"; word="${word#[}"; chosen="${word%]},smoke" ;;
            logger=*) logger=; words+=("$word") ;;
            data.digits=*) words+=(data.digits=2) ;;  # 100 secrets to rank in place of 10,000
            *) words+=("$word") ;;
        esac
    done
    forked train "${words[@]}" $logger "experiment=[$chosen]"
}
kleiber() { if [ "$1" = train ]; then shift; smoke "$@"; else forked "$@"; fi; }
python() { if [ "$1" = train.py ]; then shift; smoke "$@"; else command python "$@"; fi; }
ends_with() {
    local expected=$1 code=0; shift
    "$@" || code=$?
    [ "$code" = "$expected" ] || { echo "exit code $code, not $expected: $*" >&2; exit 99; }
}
set -x
"""


def script(page: str, is_first: bool = False) -> str:
    """The commands of all bash blocks of a page as one script."""
    commands = "\n".join(BLOCK.findall(page))
    logger = "" if is_first or "wandb" in page else "logger=csv"
    return f"LOGGER={logger}\n{PROLOGUE}" + EXPECTED.sub(r"ends_with \g<code> \g<command>", commands)


def variables(folder: Path) -> dict[str, str]:
    """The variables of a process with kleiber of this checkout in front of the path, and caches in the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KLEIBER_", "PYTEST_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY / "src"),
        "KLEIBER_CACHE": str(folder / "cache"),
        "WANDB_MODE": "offline",
    }


@pytest.fixture(scope="module")
def forked(tmp_path_factory) -> Iterator[list[str]]:
    """The words in front of those of a command of kleiber."""
    folder = tmp_path_factory.mktemp("server")
    with forked_commands(folder, variables(folder)) as words:
        yield words


def run(commands: str, folder: Path, forked: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a script of bash in a folder."""
    return subprocess.run(
        ["bash", "-c", f'forked() {{ {shlex.join(forked)} "$@"; }}\n{commands}'],
        cwd=folder,
        env=variables(folder.parent),
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * PATIENCE,
    )


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.relative_to(REPOSITORY).as_posix(), marks=[pytest.mark.long] * (path in LONG))
    for path in PAGES
])  # fmt: skip
def test_the_commands_of_a_page_work(path, forked, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / path.relative_to(REPOSITORY).with_suffix("")
    folder.mkdir(parents=True)
    (folder / "multirun").mkdir()
    for name in ("golden", "results"):  # what a reader of the repository has
        (folder / "multirun" / name).symlink_to(REPOSITORY / "multirun" / name)
    done = run(script(path.read_text(encoding="utf-8"), path in {DOCS / name for name in FIRST}), folder, forked)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_a_script_expects_the_code_of_the_comment():
    page = "```bash\nkleiber train a=1   # exit 2\nkleiber runs x # a table\n```\n```text\nkleiber no\n```"
    assert script(page).partition(PROLOGUE)[2].splitlines() == [
        "ends_with 2 kleiber train a=1",
        "kleiber runs x # a table",
    ]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("command", "code"), [
    ("ends_with 0 python -c 'exit(3)'", 99), ("ends_with 3 python -c 'exit(3)'", 0), ("python -c 'exit(3)'", 3),
    ("kleiber runs nowhere", 2), ("ends_with 2 kleiber train model=none", 0), ("kleiber runs nowhere || true", 0),
])  # fmt: skip
def test_a_command_of_another_code_fails(command, code, forked, tmp_path):
    assert run(f"LOGGER=\n{PROLOGUE}{command}", tmp_path, forked).returncode == code
