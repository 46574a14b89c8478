"""The choices of all config groups, and the overrides that each needs beside its own name to train in seconds."""

from small_run import REPOSITORY

from kleiber.config.compose import config_files

FILES = config_files()
CHOICES = [place for place in sorted(FILES) if not FILES[place].name.startswith("_")]
SHAPE = "{hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64}"
NEEDS = {"objective/mlm": ["model=bert"], "model/bert": ["objective=mlm"]}
ROUTERS = ("group_limited", "hash", "lossfree", "noisy", "random", "sigmoid", "sinkhorn", "switch", "topk")
NEEDS |= {f"model/{name}": ["model=moe"] for name in ("mlp/moe", *(f"router/{r}" for r in ROUTERS))}
NEEDS |= {f"model/attention/{name}": ["model.depth=2"] for name in ("pattern", "hybrid")}
NEEDS |= {"model/router/expert_choice": ["model=bert", "objective=mlm", "model/mlp=moe"]}
STARTS = ("checkpoint", "hf", "upcycle")
NEEDS |= {f"init/{name}": ["init.path=RUN"] for name in STARTS} | {"data/generated": ["data.models=[RUN]"]}
NEEDS |= {"model/hf": ["model.path=llama", "model.weights=random", "model.context=64", f"model.config={SHAPE}"]}
TABLES = {
    name: [f"data={name}", f"data.path={REPOSITORY / 'tests/data'}/{name}.jsonl"]
    for name in ("labelled", "instruct", "preference", "unpaired")
}
LEARNT = {"classify": "labelled", "sft": "instruct", "kto": "unpaired"}
LEARNT |= dict.fromkeys(("reward", "dpo"), "preference")
NEEDS |= {f"objective/{name}": TABLES[data] for name, data in LEARNT.items()}
NEEDS |= {f"data/{data}": [f"objective={name}", TABLES[data][1]] for name, data in LEARNT.items()}
NEEDS["data/task"] = ["objective=sft", TABLES["instruct"][1], 'data.prompt="{question}"', 'data.target="{answer}"']
NEEDS |= {"objective/distill": ["objective.teacher=RUN"], "objective/equalized": ["data=counterfactual"]}
SORTING = ["data=verifiable/sorting", "data.problems=40", "data.held_out=8", "data.lengths=[2]", "model.context=32"]
NEEDS["objective/grpo"] = [*SORTING, "objective.group=4", "objective.reward={length:1}"]
NEEDS |= {"data/tokens": ["data.path=IDS", "data.tokenizer=bytes"], "study/explain": ["batch.tokens=480"]}
NEEDS |= {name: ["design.arms={a:{},b:{model.depth:2}}"] for name in ("design/arms", "study/compare")}
NEEDS |= {"trainer/ddp": ["trainer.devices=1"], "logger/wandb": ["+logger.wandb.mode=disabled"]}
NEEDS |= {"trainer/expert": ["model=moe"]}
METHODS = [place.removeprefix("retention/") for place in CHOICES if place.startswith("retention/")]
OTHER_TEXT = (
    f"{{data:{{path:{REPOSITORY / 'tests/data/labelled.jsonl'}}}}}"  # methods against forgetting need an earlier task
)
LATER = [*(f"retention/{name}" for name in METHODS), "adapter/lora", "adapter/dora"]  # not of a run from scratch
NEEDS |= {choice: ["stages=chain", f"stages.chain={{first:{{}},second:{OTHER_TEXT}}}"] for choice in LATER}
NEEDS["stages/chain"] = [f"stages.chain={{first:{{}},second:{OTHER_TEXT}}}"]
NEEDS |= {"evals/harness": ["evals.harness.tasks=[own]"], "data/judged": ["data.model=start"]}
NEEDS |= {f"data/answers/{name}": ["data.model=start"] for name in ("right", "pairs")}
NEEDS |= {"evals/divergence": ["evals.divergence.model=start"], "study/rl_forgetting": ["init.path=RUN"]}
PROXY = ["evals.proxy_reward.start=start", "evals.proxy_reward.reward_path=RUN"]
NEEDS |= {"evals/proxy_reward": PROXY, "study/rlhf": PROXY[1:]}


def split(choice: str) -> tuple[str, str]:
    """A group and a choice of it; tasks are choices of data with a name in two parts."""
    group, name = choice.split("/", 1) if choice.startswith("data/") else choice.rsplit("/", 1)
    return group, name
