"""The memory plan of a dry run against the memory that PyTorch allocates in steps of real runs on a CPU.

    python benchmarks/memory_plan.py [FILE.json] [--only NAME...]

Each run trains three steps; PyTorch's profiler records every allocation of tensors, those within kernels too. The peak
is the largest sum within steps. Libraries and what glibc keeps are not in it. Runs of a GPU are planned and not run.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from unittest.mock import patch

REPOSITORY = Path(__file__).resolve().parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "memory_plan.json"
COMMON = ["data=builtin", "trainer=cpu", "trainer.max_steps=3", "budget.tokens=10M", "eval.tokens=1024",
          "callbacks.samples=null", "callbacks.checkpoints.every=0", "logger=csv", "data.max_bytes=2M"]  # fmt: skip
SMALL = ["model=gpt", "model.depth=2", "model.width=128", "model.context=256", "batch.tokens=2048", "batch.micro=8"]
LARGE = ["model=gpt", "model.depth=5", "model.width=256", "model.context=256", "batch.tokens=1024", "batch.micro=4"]
BPE = ["data.tokenizer=bpe", "data.vocab_size=32768", "data.max_bytes=24M"]
HF = ["model=hf", "model.weights=random", "model.depth=5", "model.context=256", "batch.tokens=1024", "batch.micro=4"]
RUNS: dict[str, list[str]] = {
    "dense, small": SMALL,
    "dense, large": LARGE,
    "vocabulary of 32k, tied": [*LARGE, *BPE],
    "vocabulary of 32k, untied": [*LARGE, *BPE, "model.tied=false"],
    "mixture": [*SMALL, "model=moe"],
    "bf16": [*LARGE, "trainer.precision=bf16"],
    "mixture in bf16": [*SMALL, "model=moe", "trainer.precision=bf16"],
    "Muon": [*LARGE, "optimizer=muon"],
    "SGD": [*LARGE, "optimizer=sgd"],
    "activation checkpoints": [*LARGE, "trainer.checkpoint_activations=true"],
    "micro-batches": [*LARGE, "batch.micro=1"],
    "LoRA": [*LARGE, "adapter=lora"],
    "Hugging Face's GPT-2": [*HF, "model.path=gpt2", "model.config={n_embd:256,n_head:4,n_positions:256}"],
    "Hugging Face's Llama": [
        *HF,
        "model.path=llama",
        "model.config={hidden_size:256,intermediate_size:688,"
        "num_attention_heads:4,num_key_value_heads:4,max_position_embeddings:256}",
    ],
}


def measure(overrides: list[str]) -> dict[str, object]:
    """Plans a run, trains it, and returns the planned bytes by part and the measured peak."""
    from omegaconf import OmegaConf
    from torch.profiler import ProfilerActivity, profile, record_function

    from kleiber.config.compose import Composer, resolve_config
    from kleiber.config.targets import build
    from kleiber.runs.inherit import complete_config
    from kleiber.runs.memory_plan import MemoryPlan, plan_memory
    from kleiber.runs.run import plan_stages, train
    from kleiber.training.lit import LitLM
    from kleiber.types.batch import Batch

    config = complete_config(resolve_config(Composer().compose(overrides))[0], overrides)
    hardware = build(OmegaConf.create(config)["trainer"])
    stage = plan_stages(config, hardware)[0]
    planned = plan_memory(stage.config, stage.plan, hardware, "cpu")
    assert isinstance(planned, MemoryPlan), planned
    step = LitLM.training_step

    def marked(lit: LitLM, batch: Batch, index: int) -> None:
        with record_function("step"):
            step(lit, batch, index)

    del stage
    gc.collect()  # what an earlier run has left
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(LitLM, "training_step", marked),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched,
    ):
        code = train(config, Path(folder) / "run")
    assert code == 0
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    live = peak = 0
    spans = [(e.start_ns(), e.end_ns()) for e in watched.profiler.kineto_results.events() if e.name() == "step"]
    for event in sorted(watched.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            if any(start <= event.start_ns() <= end for start, end in spans):
                peak = max(peak, live)
    return {"overrides": overrides, "measured": peak, "planned": planned.total, "parts": planned.parts,
            "ratio": round(planned.total / peak, 4)}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=RESULT)
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    options = parser.parse_args()
    rows = {}
    for name in options.only:
        rows[name] = measure([*COMMON, *RUNS[name]])
        print(name, *(rows[name][key] for key in ("planned", "measured", "ratio")), flush=True)
        options.file.write_text(json.dumps(rows, indent=1) + "\n")
