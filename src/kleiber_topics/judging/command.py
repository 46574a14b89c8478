"""The options of `kleiber judge`, its result, and simulated judges in place of a person."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from kleiber.config import Preempted, on_preemption, preempted_by
from kleiber.records import print_line, read_json, write_json
from kleiber.types import Json, format_interval
from kleiber_topics.judging.comparisons import Settings, TemplateOption, answers_file, load_or_answer
from kleiber_topics.judging.judgments import (
    CHOICES,
    Estimate,
    Judgment,
    agreement,
    append_judgments,
    read_judgments,
    win_rate,
)
from kleiber_topics.judging.session import Session

if TYPE_CHECKING:
    from kleiber_topics.judging.annotators import Utility

SCHEMA = "kleiber.judge/1"
WAIT_SECONDS = 0.2  # between two looks whether a signal came
TEMPLATES: tuple[TemplateOption, ...] = get_args(TemplateOption)


Models = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN|HF_FOLDER RUN|HF_FOLDER]", help="Two runs or model folders.")
]
Data = Annotated[
    list[str] | None,
    typer.Option(help="Data by name or path, whose prompts are answered. Default: that of the first run."),
]
Prompts = Annotated[Path | None, typer.Option(help="File of prompts: lines, or .jsonl with a column prompt.")]
Out = Annotated[Path, typer.Option(help="JSONL file of the judgments, which is continued.")]
Simulate = Annotated[
    str | None, typer.Option(help="Let a rule judge: variety, or words:happy,friend (share of these words).")
]
Disagreement = Annotated[
    float, typer.Option(min=0, help="Standard deviation of what each annotator of --simulate alone perceives.")
]


def judge(
    models: Models = None,
    data: Data = None,
    prompts: Prompts = None,
    template: Annotated[str, typer.Option(help="How prompts are given to the models: auto, chat or plain.")] = "auto",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most comparisons.")] = 50,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a prompt from a text.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="Temperature of the answers.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample from the most probable tokens that reach this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the answers and of the sides.")] = 0,
    judge: Annotated[str, typer.Option(help="Name of the judge.")] = "",
    out: Out = Path("judgments.jsonl"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 chooses a free one.")] = 0,
    report: Annotated[bool, typer.Option("--report", help="Print the result of --out and judge nothing.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the result to this JSON file as well.")] = None,
    simulate: Simulate = None,
    annotators: Annotated[int, typer.Option(min=1, max=1000, help="Simulated judges; each judges all.")] = 1,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share of opposite choices of --simulate.")] = 0.0,
    longer: Annotated[float, typer.Option(help="Utility of 100 more bytes for --simulate: a bias.")] = 0.0,
    first: Annotated[float, typer.Option(help="Utility of the left side for --simulate: a bias.")] = 0.0,
    disagreement: Disagreement = 0.0,
) -> None:
    """Compare the answers of two models blindly, on a page of this machine, and keep the judgments.

    The file is data for data=preference (dpo, reward) and data=unpaired (kto). The result is how often the second
    model is preferred to the first. A command that was stopped goes on where it stopped.
    """
    paths = models or []
    if report:
        if paths:
            raise ValueError(f"--report reads --out {out} alone: remove {' '.join(paths)}")
        show_report(out, json)
        return
    settings = Settings(
        check_models(paths), tuple(data or ()), None if prompts is None else str(prompts), check_template(template),
        limit, prompt_tokens, tokens, temperature, top_p, seed,
    )  # fmt: skip
    if data and prompts is not None:
        raise ValueError(f"--data {data[0]} and --prompts {prompts} both give prompts: remove one of the two")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out} must be in an existing folder: create {out.absolute().parent}")
    if simulate is None:
        for option, value in (("noise", noise), ("longer", longer), ("first", first), ("disagreement", disagreement)):
            if value:
                raise ValueError(f"--{option} {value} is only read by --simulate: add it, or remove --{option}")
        name = judge or os.environ.get("USER", "judge")
        try:
            run_page(Session(load_or_answer(settings, out), out, name), port)
        except Preempted as reason:
            print_line(f"stopped by {reason}; the same command goes on, with what {out} has", err=True)
            raise typer.Exit(reason.status.exit_code) from None
    else:
        biases = {"noise": noise, "longer": longer, "first": first, "disagreement": disagreement}
        simulate_judges(settings, out, parse_utility(simulate), annotators, biases)
    show_report(out, json)


def check_models(paths: Sequence[str]) -> tuple[str, str]:
    """The two models of the command. Raises ValueError for another number of them, and for the same one twice."""
    if len(paths) != 2 or paths[0] == paths[1]:
        raise ValueError(f"kleiber judge needs two different models, and got {len(paths)}: {' '.join(paths) or 'none'}")
    for path in paths:
        if not Path(path).is_dir() and not Path(path).parent.is_dir():
            raise ValueError(f"{path} must be the folder of a run, RUN/STAGE, or a Hugging Face folder")
    return paths[0], paths[1]


def check_template(text: str) -> TemplateOption:
    """The value of --template. Raises ValueError for another one."""
    for option in TEMPLATES:
        if option == text:
            return option
    raise ValueError(f"--template {text} must be one of {', '.join(TEMPLATES)}")


def parse_utility(text: str) -> Utility:
    """The rule of --simulate. Raises ValueError for another one than `variety` and `words:...`."""
    from kleiber_topics.judging.annotators import Variety, WordShare

    kind, _, words = text.partition(":")
    if kind == "variety" and not words:
        return Variety()
    if kind == "words" and words:
        return WordShare([part.strip().lower() for part in words.split(",") if part.strip()])
    raise ValueError(f"--simulate {text} must be variety or words:WORD,WORD,... (the share of these words)")


def simulate_judges(
    settings: Settings, out: Path, taste: Utility, annotators: int, biases: dict[str, float]
) -> None:  # fmt: skip
    """Lets simulated judges judge all comparisons that they have not judged yet."""
    from kleiber_topics.judging.annotators import Annotator

    read_judgments(out)  # refuses another file before the models answer
    comparisons = load_or_answer(settings, out)
    for number in range(annotators):
        annotator = Annotator(taste, number=number, seed=settings.seed, **biases)
        append_judgments(out, [annotator.judge(comparison) for comparison in comparisons])


def run_page(session: Session, port: int) -> None:
    """Serves the page until the judge finishes it. Raises Preempted for a signal, such as Ctrl-C."""
    from kleiber_topics.judging.server import JudgeServer

    if session.state()["item"] is None:
        print_line(f"{session.judge} has judged all {session.total} comparisons in {session.path}", err=True)
        return
    try:
        server = JudgeServer(session, port)
    except OSError as error:
        raise ValueError(f"--port {port} cannot be used: {error.strerror}; 0 chooses a free one") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    print_line(
        f"open {server.url} to judge {session.total} comparisons; Ctrl-C stops, and what is judged stays", err=True
    )
    with on_preemption(lambda _: None) as received:
        while not received and not session.finished.wait(WAIT_SECONDS):
            pass
    server.shutdown()
    server.server_close()
    if received:
        raise preempted_by(received[0], "")


def result(judgments: Sequence[Judgment], out: Path) -> Json:
    """The result of judgments, as --json writes it.

    win_rate   of the second model over all judges, and of each judge
    agreement  Krippendorff's alpha, nominal; None without prompts that several judges judged,
               and where all judgments are the same

    Raises ValueError for judgments of none or more than two models.
    """
    models = dict.fromkeys(
        name for j in judgments for name in sorted({j.comparison.left_model, j.comparison.right_model})
    )
    kept = answers_file(out)
    if kept.is_file():
        models = dict.fromkeys([*read_json(kept)["settings"]["models"], *models])
    if len(models) != 2:
        raise ValueError(f"--out {out} must have judgments of two models, and has {len(models)}: {', '.join(models)}")
    first, second = models
    by_judge = {name: [j for j in judgments if j.judge == name] for name in dict.fromkeys(j.judge for j in judgments)}
    choices = Counter(j.choice for j in judgments)
    return {
        "schema": SCHEMA, "models": [first, second], "judgments": len(judgments),
        "win_rate": to_json(win_rate(judgments, second)), "agreement": to_json(agreement(judgments)),
        "choices": {choice: choices[choice] for choice in CHOICES},
        "judges": {name: to_json(win_rate(of_judge, second)) for name, of_judge in by_judge.items()},
    }  # fmt: skip


def to_json(estimate: Estimate | None) -> Json | None:
    """An estimate as plain data."""
    return None if estimate is None else asdict(estimate)


def show_report(out: Path, json: Path | None) -> None:
    """Prints the result of a file of judgments. Raises ValueError where it has none."""
    judgments = read_judgments(out)
    if not judgments:
        raise ValueError(f"--out {out} has no judgments: judge some with kleiber judge RUN RUN --out {out}")
    record = result(judgments, out)
    if json is not None:
        write_json(json, record)
    print_line("\n".join(report_lines(record)))


def report_lines(record: Json) -> list[str]:
    """The lines of a result."""
    first, second = record["models"]
    choices = ", ".join(f"{count} {choice}" for choice, count in record["choices"].items())
    lines = [
        f"{record['judgments']} judgments: {choices}",
        f"win rate of {second} against {first}: {interval(record['win_rate'], 'prompts')} (a tie counts 1/2)",
    ]
    if len(record["judges"]) > 1:
        lines += [f"  {name}: {interval(values, 'prompts')}" for name, values in record["judges"].items()]
        alpha = record["agreement"]
        why = "not defined, since no prompt was judged by two judges, or all judgments are the same"
        shared = why if alpha is None else interval(alpha, "shared prompts")
        lines.append(f"agreement of the judges (Krippendorff's alpha): {shared}")
    return lines


def interval(values: Json, of: str) -> str:
    """A value with its interval and number of items."""
    return f"{values['value']:.3f} {format_interval(values['lo'], values['hi'], '.3f')} on {values['n']} {of}"
