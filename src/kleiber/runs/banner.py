"""What a run prints before it trains: model, data, steps, device, folder, loggers, and the command that resumes it.

Also what a dry run prints of its stages.
"""

from __future__ import annotations

from collections.abc import Sequence

from kleiber.config.stages import Budget, quantity
from kleiber.data.corpus import TextCorpus
from kleiber.records.closing_table import command, format_number
from kleiber.records.terminal import wrapped
from kleiber.runs.plan import Plan
from kleiber.runs.stage_evaluation import scored_tokens, token_limit, validation_interval
from kleiber.runs.stage_tree import Stage, Tree
from kleiber.training.trainer import Local, has_amx, peak_flops

MOST_EPOCHS = 4  # a repeated token is worth about as much as a new one up to here (Muennighoff et al. 2023)


def banner_lines(
    title: str, tree: Tree, loggers: Sequence[str], overrides: Sequence[str] | None, columns: int | None = None
) -> list[str]:
    """Returns the lines of the banner.

    title      name of the run
    tree       its stages, hardware and folder
    loggers    a line on each logger, such as "W&B offline in DIR"
    overrides  the command line of the run; None for a run of a study, whose command trains others too
    columns    of the terminal, into which the lines are wrapped; None for a pipe
    """
    stages, hardware = tree.stages, tree.hardware
    first = stages[0].plan
    rows = [("model", describe_model(stages[0])), ("data", describe_data(stages[0])), *reading_rows(stages)]
    if len(stages) == 1:
        rows.append(("training", describe_steps(stages[0])))
    else:
        rows += [(f"stage {stage.name}", describe_steps(stage)) for stage in stages]
    validations = {stage.name: describe_validation(tree, stage) for stage in stages}
    if len({*validations.values()}) == 1:
        rows.append(("validation", validations[stages[0].name]))
    else:
        rows += [(f"validation of {name}", text) for name, text in validations.items()]
    if first.privacy is not None:
        rows.append(("privacy", first.privacy.describe(first.stop_step)))
    ranks = f"{hardware.world_size} processes, " if hardware.world_size > 1 else ""
    rows += [
        ("device", f"{ranks}{describe_device(hardware)}, micro-batches of {micro_rows(first)}"),
        *(("precision", line) for line in precision_advice(hardware)),
        ("time", "unknown until the first steps are measured"),
        ("folder", str(tree.folder)),
        *(("logger", line) for line in loggers),
        ("resume", f"repeat {'the command of its study' if overrides is None else command(['train', *overrides])}"),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {text}" for label, text in rows]
    return [f"training {title}", *(wrapped(line, width + 4, columns) for line in lines)]


def describe_model(stage: Stage) -> str:
    """Returns the class of the model, its shape and its numbers of parameters."""
    model, counts = stage.plan.model, stage.plan.parameters
    name = str(stage.config.model["_target_"]).rpartition(".")[2]
    depth = len(model.blocks)
    shape = f"{depth} layer{'s' * (depth != 1)}, width {model.width}, context {stage.plan.context}"
    active = "" if counts.active == counts.total else f", {counts.active:,} active for each token"
    return f"{name}, {shape}; {counts.total:,} parameters{active}"


def describe_data(stage: Stage) -> str:
    """Returns the name of the data, its tokens and its tokenizer."""
    corpus = stage.plan.corpus
    tokenizer = f"{corpus.tokenizer.name}, {corpus.tokenizer.vocab_size:,} tokens in the vocabulary"
    tokens = f"{corpus.train.num_tokens:,} training tokens" if corpus.train.random_access else "encoded while training"
    return f"{corpus.name}, {tokens}; tokenizer {tokenizer}"


def reading_rows(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Returns the labels and lines on the files that the stages read, on what they share, and of warnings."""
    rows: list[tuple[str, str]] = []
    for stage in stages:
        corpus = stage.plan.corpus
        if isinstance(corpus, TextCorpus):
            rows += [("files", line) for line in corpus.reading.files]
            rows += [("overlap", line) for line in corpus.reading.overlap]
    rows += [("warning", line) for line in reading_warnings(stages)]
    return [*dict.fromkeys(rows)]


def reading_warnings(stages: Sequence[Stage]) -> list[str]:
    """Returns what may mislead in the results of the stages: documents, tables left out, repetition, sides not read."""
    corpora = [stage.plan.corpus for stage in stages]
    of_files = [line for corpus in corpora if isinstance(corpus, TextCorpus) for line in corpus.reading.warnings]
    lines = (warning(stage) for warning in (repetition_warning, one_sided_warning) for stage in stages)
    return [*of_files, *(line for line in lines if line is not None)]


def repetition_warning(stage: Stage) -> str | None:
    """Returns a warning where a stage reads its training data more than four times, with the key to change."""
    plan = stage.plan
    of_a_step = plan.rows / len(plan.corpus.train)  # to which a budget of epochs is rounded
    if not plan.corpus.train.random_access or plan.epochs <= MOST_EPOCHS + of_a_step:
        return None
    epochs, tokens = format_number(plan.epochs), plan.corpus.train.num_tokens
    limits = Budget(**stage.config.budget).limits()
    name, value = next(iter(limits.items()), ("epochs", plan.epochs))
    setting = f"budget.{name}={value}" if limits else "the default budget"
    fewer = f"budget.{name}={quantity(value) * MOST_EPOCHS / plan.epochs:.4g}"
    return (
        f"{setting} is {epochs} epochs over the {tokens:,} training tokens of {plan.corpus.name}; repeats beyond "
        f"{MOST_EPOCHS} add little: set {fewer}, or add data"
    )


def one_sided_warning(stage: Stage) -> str | None:
    """Returns a warning where hidden tokens are predicted by a model that reads the tokens before them alone."""
    objective = stage.plan.objective
    if not objective.hides_tokens or not stage.plan.model.causal:
        return None
    name = type(objective).__name__.lower()
    return f"objective={name} on a causal model, which reads the left side of a hidden token alone: set model=bert"


def describe_steps(stage: Stage) -> str:
    """Returns the steps, tokens, passes over the data and objective of a stage."""
    plan, steps = stage.plan, stage.steps
    start = f" from step {stage.branch_step:,} of {stage.parent}" if stage.continues else ""
    data = "" if stage.parent is None or stage.continues else f" on {plan.corpus.name}"
    tokens, objective = steps * plan.batch_tokens, type(plan.objective).__name__.lower()
    epochs = f", {format_number(plan.epochs)} epochs" if plan.corpus.train.random_access else ""
    return (
        f"{steps:,} steps of {plan.batch_tokens:,} tokens{start}{data}: {tokens:,} tokens "
        f"({format_number(tokens / plan.parameters.active)} per active parameter{epochs}), objective {objective}"
        f"{of_a_trial(plan)}"
    )


def micro_rows(plan: Plan) -> str:
    """Returns how many rows a micro-batch has, such as `8 rows`."""
    return f"{plan.micro_batch} row{'s' * (plan.micro_batch != 1)}"


def of_a_trial(plan: Plan) -> str:
    """Returns what trainer.max_steps leaves out of a stage; "" where it leaves out nothing."""
    limit = plan.max_steps
    if limit is None or not plan.stop_step == limit < plan.steps:
        return ""
    return (
        f"; trainer.max_steps={limit} ends a trial of {plan.steps:,} steps and keeps their schedule: "
        f"for a run of {limit} steps write budget.steps={limit}"
    )


def describe_validation(tree: Tree, stage: Stage) -> str:
    """Returns when the tasks of a stage are scored while it trains, and on how many tokens."""
    tasks = tree.stage_tasks(stage).current
    every = validation_interval(stage, tasks)
    interval = "every step" if every == 1 else f"every {every:,} steps"
    when = interval if 0 < every < stage.plan.stop_step else "after the last step"
    return f"{when}, on {scored_tokens(tasks, token_limit(stage.config)):,} tokens"


def describe_device(hardware: Local) -> str:
    """Returns the device of each process, with CPU threads, and the precision of training."""
    import torch

    threads = torch.get_num_threads()
    device = f"{threads} thread{'s' if threads > 1 else ''}"
    is_gpu = hardware.accelerator == "gpu"
    device = f"{torch.cuda.get_device_name(hardware.device)} and {device}" if is_gpu else f"CPU with {device}"
    precision = "bf16 with fp32 weights" if str(hardware.precision) == "bf16" else f"fp{hardware.precision}"
    return f"{device}, {precision}{', compiled' if hardware.compile else ''}"


def precision_advice(hardware: Local) -> list[str]:
    """Returns a line where another precision is faster on this processor: bf16 with AMX, often fp32 without it."""
    if hardware.accelerator == "cpu" and str(hardware.precision) == "32" and has_amx():
        return ["this processor multiplies in bf16 several times as fast: trainer.precision=bf16, with other digits"]
    if hardware.accelerator == "cpu" and str(hardware.precision) == "bf16":
        bf16, fp32 = (peak_flops(hardware.device, of_bf16) or 0.0 for of_bf16 in (True, False))
        if bf16 < fp32:
            share = f"{bf16 / fp32:.1f} of the speed of those in fp32"
            return [f"products in bf16 have {share} on this processor: trainer.precision=32 is faster"]
    return []
