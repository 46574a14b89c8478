"""What a dry run says of the stages of a run: sizes, data, steps, FLOPs and learning rates."""

from __future__ import annotations

from collections.abc import Sequence

from kleiber.optimizers.schedules import sparkline
from kleiber.runs.banner import micro_rows, of_a_trial, reading_rows
from kleiber.runs.stage_tree import Stage


def describe_stages(stages: Sequence[Stage]) -> list[str]:
    """Returns the lines that a dry run prints: parameters, data, steps, FLOPs and learning rate of the stages."""
    is_chain = len(stages) > 1 and not any(stage.continues for stage in stages)
    if is_chain:
        lines: list[str] = []
        for stage in stages:
            lines += [f"stage {stage.name}", *_plan_lines([stage])]
        return lines + _start_lines(stages)
    lines = _plan_lines(stages)
    return [*lines, *_start_lines(stages), _saving_line(stages)] if len(stages) > 1 else lines


def _plan_lines(stages: Sequence[Stage]) -> list[str]:
    """Lines on the last stage of a tree, with the FLOPs of all of them."""
    plan = stages[-1].plan
    parameters, trained = plan.parameters, sum(stage.steps for stage in stages) * plan.batch_tokens
    unique = f"{plan.corpus.train.num_tokens:,} unique training tokens, {plan.epochs:.2f} epochs"
    rows = [f"{label:<12} {line}" for label, line in reading_rows(stages)]
    return [
        f"parameters   {parameters.total:,} total, {parameters.active:,} active, "
        f"{parameters.non_embedding:,} outside embeddings",
        f"data         {plan.corpus.name}: {unique if plan.corpus.train.random_access else 'encoded while training'}",
        *rows,
        f"steps        {plan.stop_step:,} of {plan.batch_tokens:,} tokens, micro-batches of {micro_rows(plan)}; "
        f"{plan.tokens:,} tokens ({plan.tokens / parameters.active:.1f} per active parameter){of_a_trial(plan)}",
        f"compute      {plan.flops_per_token * trained:.3g} FLOPs ({plan.flops_per_token:,.0f} per token; 6ND = "
        f"{6 * parameters.active * trained:.3g})",
        *([] if plan.privacy is None else [f"privacy      {plan.privacy.describe(plan.stop_step)}"]),
        f"lr           peak {plan.optimizer.lr:g} ({type(plan.model.parametrization).__name__}); over the run:  "
        f"{sparkline(plan.schedule, plan.steps)}",
    ]


def _start_lines(stages: Sequence[Stage]) -> list[str]:
    """A line per stage on the stage and the step that it starts from."""
    lines = []
    for stage in stages:
        start = f"from {stage.parent}" if stage.parent else "from the start"
        first = stage.branch_step if stage.continues else 0
        lines.append(f"stage        {stage.name}: {start}, steps {first:,} to {stage.plan.stop_step:,}")
    return lines


def _saving_line(stages: Sequence[Stage]) -> str:
    """How many steps a tree saves over a separate run for each branch."""
    trained = sum(stage.steps for stage in stages)
    separate = sum(stage.plan.stop_step for stage in stages if stage.parent)
    return f"saving       {1 - trained / separate:.0%}: {trained:,} steps instead of {separate:,} in separate runs"
