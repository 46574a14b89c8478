"""Runs of W&B: one for each training, evaluation and study, with the same settings. The client is imported when used.

No server can keep kleiber from working: where none answers, or it refuses the run, the run is recorded offline, and
`wandb sync` sends it later.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

from kleiber.config.errors import ConfigError
from kleiber.records.regular_files import refuse_link
from kleiber.records.terminal import print_line
from kleiber.types import Json

if TYPE_CHECKING:
    from wandb import Artifact, Run

TIMEOUT = 1.5  # seconds to wait for a connection to the server before the run continues without it
INIT_TIMEOUT = 20.0  # seconds to wait for a server that accepts connections to start the run
Mode = Literal["auto", "online", "offline", "disabled"]
JobType = Literal["train", "eval", "study"]


def start_run(
    folder: Path,
    run_id: str,
    name: str,
    group: str,
    job_type: JobType,
    *,
    online: bool,
    project: str = "kleiber",
    entity: str | None = None,
    tags: Sequence[str] | None = None,
    config: Json | None = None,
    console: bool = False,
    system_metrics: bool = False,
) -> Run:
    """Starts a run, or resumes the one of the same id. Its files are in `folder`/wandb.

    online          where the server does not start the run, prints why and records offline
    console         also send what the process prints
    system_metrics  also measure CPU, memory and GPU every few seconds

    Raises ConfigError where there is no home folder, without which the client does not start, and where a link stands
    in the place of `folder`/wandb.
    """
    try:
        Path.home()
    except RuntimeError:
        raise ConfigError("logger=wandb needs a home folder: set HOME=DIR, or logger=csv") from None
    refuse_link(folder / "wandb")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    settings = wandb.Settings(
        init_timeout=INIT_TIMEOUT, console="wrap" if console else "off", x_disable_stats=not system_metrics, silent=True
    )
    start = partial(
        wandb.init, dir=folder, id=run_id, name=name, group=group, project=project, entity=entity, tags=tags,
        config=config, job_type=job_type, resume="allow", settings=settings,
    )  # fmt: skip
    return _start_online(start, folder) if online else start(mode="offline")


def _start_online(start: Callable[..., Run], folder: Path) -> Run:
    """Starts a run online, or offline where that fails. Errors that do not depend on the server are raised offline."""
    import wandb

    earlier = set(online_records(folder))
    try:
        return start(mode="online")
    except Exception as error:  # W&B raises classes of its own, of pydantic's and of the network's
        reason = " ".join(str(error).split()) or type(error).__name__
        print_line(f"W&B: {_server()} did not start the run ({reason}); {_offline_in(folder)}", err=True)
    wandb.teardown()  # otherwise its service holds the id of the run
    for record in set(online_records(folder)) - earlier:
        shutil.rmtree(record, ignore_errors=True)
    return start(mode="offline")


def choose_online(mode: Mode, folder: Path) -> bool:
    """Returns whether to log online: for `auto` where a key is set and the server accepts a connection within 1.5 s.

    Prints why a run with a key, or with mode `online`, is recorded offline.
    """
    reason = None if mode == "offline" else unreachable()
    if reason and (mode == "online" or has_key()):
        print_line(f"W&B: {reason}; {_offline_in(folder)}", err=True)
    return mode != "offline" and reason is None


def _offline_in(folder: Path) -> str:
    return f"recording offline in {folder / 'wandb'}"


def node_of(config: Mapping[str, object]) -> Json:
    """Returns the settings of the W&B logger in the config of a run; {} where it has none."""
    loggers = config.get("logger")
    node = loggers.get("wandb") if isinstance(loggers, Mapping) else None
    return dict(node) if isinstance(node, Mapping) else {}


def was_online(folder: Path) -> bool:
    """Whether the run in `folder` was logged online."""
    return bool(online_records(folder))


def online_records(folder: Path) -> list[Path]:
    """Returns the folders of the records in `folder`/wandb that were sent to a server."""
    return list((folder / "wandb").glob("run-*"))


def address(run: Run) -> str:
    """Returns the address of a run on its server, or the command that sends an offline run to one."""
    folder = Path(run.settings.sync_dir)
    home = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"offline: wandb sync {home}" if run.offline else str(run.url)


def log_files(run: Run, name: str, kind: str, files: Mapping[str, Path], metadata: Json, aliases: list[str]) -> None:
    """Logs files by their names as one artifact of type `kind`, such as model."""
    artifact = _artifact(name, kind, metadata)
    for file_name, path in files.items():
        artifact.add_file(str(path), name=file_name)
    run.log_artifact(artifact, aliases=aliases)


def log_table(run: Run, key: str, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Logs rows as a table with these columns. They are sent with what is logged next, or at the end of the run."""
    import wandb

    run.log(
        {
            key: wandb.Table(
                columns=list(columns),
                data=[[row.get(name) for name in columns] for row in rows],
                allow_mixed_types=True,
            )
        },
        commit=False,
    )


def log_run(run: Run, name: str) -> None:
    """Logs a run of kleiber as an artifact, which the runs that start from it and its study use."""
    run.log_artifact(_of_facts(f"{name}-run", "run", {"run": name, "run_id": run.id}))


def use_run(run: Run, name: str, run_id: str) -> None:
    """Records that `run` reads the results or weights of another run of kleiber, which has logged itself."""
    _use(run, _of_facts(f"{name}-run", "run", {"run": name, "run_id": run_id}))


def use_data(run: Run, name: str, facts: Json) -> None:
    """Records that `run` trains on data; `facts` describe them, and equal facts are one version of the artifact."""
    _use(run, _of_facts(name, "dataset", facts))


def _use(run: Run, artifact: Artifact) -> None:
    """Does what `run.use_artifact` does, which refuses to work offline and waits for the server online."""
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def _of_facts(name: str, kind: str, facts: Json) -> Artifact:
    artifact = _artifact(name, kind, facts)
    with artifact.new_file(f"{kind}.json") as file:
        file.write(json.dumps(facts, sort_keys=True))
    return artifact


def _artifact(name: str, kind: str, metadata: Json) -> Artifact:
    import wandb

    return wandb.Artifact(re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:120], type=kind, metadata=metadata)


def has_key() -> bool:
    """Whether the environment or ~/.netrc has a key for the server."""
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return urlparse(_server()).hostname in netrc.netrc().hosts
    return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def unreachable() -> str | None:
    """Returns why W&B cannot be used online now; None where it can."""
    if not has_key():
        return "no API key (set WANDB_API_KEY to mirror runs online)"
    host = urlparse(_server())
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=TIMEOUT).close()
    except OSError as error:
        return f"{host.hostname} does not answer ({error})"
    return None
