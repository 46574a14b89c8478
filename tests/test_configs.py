"""Every choice of every group composes, passes the check and trains; every leaf changes the hash, and what is built."""

import json
from functools import cache
from pathlib import Path

import pytest
from choices import CHOICES, FILES, LEARNT, METHODS, NEEDS, ROUTERS, TABLES, split
from omegaconf import OmegaConf
from small_run import TINY

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.launch.main import main
from kleiber.records.folder import NOT_IDENTITY, config_hash

TESTS = Path(__file__).parent
SMOKED = "studies/test_study_smoke.py"
ELSEWHERE = {  # test files that train with a choice, or prepare its data, in place of the tests here
    "logger/mlflow": "training/test_mirrors.py",
    "trainer/gpu": "gpu/test_gpu.py",
    "trainer/fsdp": "training/test_fsdp.py",
    "trainer/expert": "training/test_parallel.py",
    "trainer/smoke": "small_run.py",  # in every run here
    "stages/chain": "runs/test_stage.py",
    "stages/docs_then_code": "test_readme.py",
    "init/checkpoint": "runs/test_start_point.py",
    "init/hf": "runs/test_start_point.py",
    "init/upcycle": "runs/test_stage.py",
    "objective/distill": "objectives/test_distill.py",
    "objective/grpo": "objectives/test_grpo.py",
    "design/ladder": SMOKED,
    "design/isoflop": "launch/test_sweep_designs.py",
    "design/grid": "launch/test_sweep_designs.py",
    "design/search": "studies/test_search.py",
    "design/arms": "studies/designs/test_grid.py",
    "design/methods": "studies/designs/test_grid_methods.py",
    "design/sequence": "studies/designs/test_sequences.py",
}
ELSEWHERE |= {place: SMOKED for place in CHOICES if place.startswith("study/")}
ELSEWHERE |= {place: "test_experiments.py" for place in CHOICES if place.startswith("experiment/")}
ELSEWHERE |= {f"retention/{name}": f"retention/test_{name}.py" for name in METHODS}
TABLED = ("instruct", "labelled", "preference", "text", "unpaired")
OF_DATA = dict.fromkeys(("tinystories", "wikitext"), "test_texts")
OF_DATA |= {"tokens": "test_token_files", "deduplicated": "test_duplicates"}
OF_DATA |= {place.removeprefix("data/"): "test_task" for place in CHOICES if place.startswith("data/task")}
ELSEWHERE |= {
    f"data/{name}": f"data/{OF_DATA.get(name, 'test_labelled' if '/' in name else f'test_{name}')}.py"
    for name in (place.removeprefix("data/") for place in CHOICES if place.startswith("data/"))
    if name not in TABLED
}
ELSEWHERE |= {place: f"evals/test_{FILES[place].stem}.py" for place in CHOICES if place.startswith("evals/")}
ELSEWHERE |= {
    "data/repeat": "data/test_mixture.py",
    "evals/routing": "training/callbacks/test_evaluations.py",
}
# A choice of a topic is tested beside the topic: in the file of its module, or of a package of the topic.
for place, file in FILES.items():
    if "kleiber_topics" in file.parts and not place.startswith("study/"):
        folder, name = TESTS / "topics" / file.parts[file.parts.index("kleiber_topics") + 1], f"test_{file.stem}.py"
        places = [folder / name, folder / file.stem / name, folder / file.stem / "test_evaluation.py"]
        tested = next((path for path in places if path.is_file()), folder / "test_evaluation.py")
        ELSEWHERE[place] = str(tested.relative_to(TESTS))
OWN_ANSWERS = ("data/answers/", "experiment/sums_and_words")
ELSEWHERE |= {place: "topics/rewards/test_own_answers.py" for place in CHOICES if place.startswith(OWN_ANSWERS)}
ELSEWHERE |= {place: "topics/rewards/test_problems.py" for place in CHOICES if place.startswith("data/verifiable/")}
SAME = {  # choices that are the same run as another one, by the hash of their configs
    **dict.fromkeys(("mlp/swiglu", "attention/full", "parametrization/mup"), "gpt"),
    **dict.fromkeys(("mlp/moe", "router/topk"), "moe"),
}
SAME = {f"model/{name}": f"model/{twin}" for name, twin in SAME.items()}
DEFAULTS = ("optimizer/adamw", "schedule/wsd", "callbacks/default", "data/text", "logger/csv", "objective/clm")
LAUNCHERS = ("launcher/basic", "launcher/process", "launcher/ray", "launcher/submitit")
SAME |= dict.fromkeys((*DEFAULTS, *LAUNCHERS), "model/gpt")
SAME |= {f"data/{data}": f"objective/{name}" for name, data in LEARNT.items() if data != "preference"}
SAME |= {"data/preference": "objective/dpo", "objective/mlm": "model/bert"}
# Classes whose mathematics tests of their own show: that a run takes them is asked of them when there is time.
SLOW = [f"model/router/{name}" for name in ("group_limited", "noisy", "random", "sigmoid", "sinkhorn", "switch")]
SLOW += [f"objective/{name}" for name in ("dpo", "reward", "kto", "equalized")]
SLOW += [f"model/attention/{name}" for name in ("pattern", "latent", "delta")]
SLOW += ["adapter/dora", "trainer/ddp", "init/scratch", "privacy/dp_sgd"]


@cache
def composer() -> Composer:
    return Composer("train")


def compose(*overrides: str) -> dict:
    config, _ = resolve_config(composer().compose([*TINY, "root=r", *overrides]))
    return config


TRAINED = [choice for choice in CHOICES if choice not in ELSEWHERE and choice not in SAME]


def overrides(choice: str) -> list[str]:
    """The overrides of a tiny run with that choice, without the keys of TINY that it has no place for."""
    group, name = split(choice)
    # Another data set has other keys, and a study writes no samples.
    gone = {"data": ("data",), "experiment": ("data",), "docs_then_code": ("data",), "study": ("callbacks.samples",)}
    names = (
        "grpo",
        "sums_and_words",
        "forgetting",
        "forgetting_4m",
        "forgetting_law",
        "moe_forgetting",
        "adapters",
        "moe_gain",
        "needle",
        "memorization",
    )
    gone |= dict.fromkeys(
        (
            *names,
            "chain_of_thought",
            "chain_of_thought_128",
            "instructions",
            "collaboration",
            "equalized",
            "experts",
            "retrieval",
            "rl_forgetting",
            "rlhf",
        ),
        (*gone["study"], "data"),
    )
    prefixes = next((gone[key] for key in (name, group) if key in gone and name != "text"), ())
    plain = [override for override in TINY if not override.startswith(prefixes)]
    return [*plain, *NEEDS.get(choice, []), f"{group}={name}"]


def alone(choice: str) -> dict:
    config, _ = resolve_config(composer().compose([*overrides(choice), "root=r"]))
    return config


@cache
def twin_hash(choice: str) -> str:
    return config_hash(compose(*NEEDS.get(choice, []), "=".join(split(choice))))


def test_every_choice_without_a_test_here_has_one_elsewhere():
    assert {choice: file for choice, file in ELSEWHERE.items() if not (TESTS / file).is_file()} == {}
    assert {*ELSEWHERE} <= {*CHOICES}


@pytest.mark.slow
def test_every_choice_composes_and_passes_the_check():
    wrong = {}
    for choice in (c for c in CHOICES if c not in TRAINED or c in SLOW):
        try:
            config = alone(choice)
            if choice not in ("trainer/gpu", "logger/mlflow"):  # refused where there is no GPU, or no MLflow
                check(config)
            if choice in SAME and config_hash(config) != twin_hash(SAME[choice]):
                wrong[choice] = f"is another run than {SAME[choice]}"
        except ConfigError as error:
            wrong[choice] = str(error)
    assert wrong == {}


@pytest.mark.parametrize("choice", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in TRAINED])
def test_every_choice_trains_two_steps(tmp_path, cache_dir, choice):
    """It is composed and checked on the way."""
    assert main([*overrides(choice), f"root={tmp_path}", "trainer.max_steps=2"]) == 0
    (folder,) = tmp_path.glob("*/*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


def leaves(node: dict, path: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in node.items():
        leaf = f"{path}.{key}" if path else str(key)
        values |= leaves(value, leaf) if isinstance(value, dict) else {leaf: value}
    return values


OTHER = {  # another valid value, where doubling a number or turning a switch gives none
    "model.depth": 3, "model.width": 192, "model.hidden": 24, "model.mlp.hidden": 48, "budget.tokens": 4096,
    "budget.flops": 1e9, "budget.ratio": 1, "budget.steps": 7, "batch.tokens": 1024, "batch.micro": 3,
    "eval.every_steps": 2, "eval.tokens": 256, "data.vocab_size": 512, "data.max_bytes": 2000, "data.tokenizer": "bpe",
    "data.config": "default", "seed": 1, "data.separator": "none", "trainer.precision": 64, "trainer.max_steps": 2,
    "trainer.compile": True, "trainer.accelerator": "gpu", "budget.epochs": 2,
    "optimizer.betas": [0.8, 0.9], "schedule.decay": 0.9, "schedule.final": 0.5,
    "objective.pooling": "last", "objective.loss": "sigmoid", "objective.center": 0.5, "data.name": "other",
    "objective.seed": 5, "objective.z_loss": 0.01, "model.mlp.num_shared": 1,
    "model.mlp.k": 4, "model.mlp.dense_first": 1, "model.attention.query_rank": 12,
    "model.mlp.balance.scope": "global", "model.mlp.router.iterations": 1,
    "stages.branches": [2048, 3072], "optimizer.clip": 0.1, "optimizer.weight_decay": 10.0,
    "optimizer.momentum": 0.5, "model.attention.pattern": ["full", "window"], "model.attention.rank": 12,
}  # fmt: skip
NO_EFFECT = {
    "data.splits": "of a folder with names of splits: test_input_files.py",
    "batch.micro": "memory, not mathematics: test_run.py shows the same weights",
    "model.mlp.backend": "the same numbers to 1e-5: test_dispatch.py",
    "model.mlp.router.acknowledge_leak": "refused without it: test_routers.py",
    "trainer.compile": "the same numbers, faster",
    "trainer.deterministic": "all CPU kernels used here are deterministic already",
    "trainer.accelerator": "needs a GPU",
    "data.path": "another text: tests/data",
    "data.text": "a column of a table: tests/data",
    **dict.fromkeys(("data.label", "data.prompt", "data.response"), "a column of a table: tests/data"),
    "data.metric": "the score that stands for the task in R: tests/data/test_labelled.py",
    "data.rows": "documents or stream: tests/data",
    **dict.fromkeys(("data.streaming", "data.shuffle_buffer"), "of more text: tests/runs/test_stage_streaming.py"),
    "data.config": "a configuration of a data set: tests/data",
    "data.vocab_size": "of bpe alone: tests/data",
    **dict.fromkeys(("init", "retention", "adapter", "stages", "privacy"), "groups without a choice here"),
    "eval.watch_tokens": "where there is an earlier task: tests/test_chain.py",
    "schedule.warmup_steps": "of so short a run a fifth is warm-up whatever it says: optimizers/test_schedules.py",
    **dict.fromkeys(("budget.flops", "budget.ratio", "budget.tokens", "budget.epochs"), "config/test_stages_budget.py"),
}  # fmt: skip
SPECIAL = ("_target_", "_partial_")  # how a node is built, not what
CONFIG = compose("model=moe")


def outside(leaf: str) -> bool:
    return any(leaf == key or leaf.startswith(f"{key}.") for key in NOT_IDENTITY)


@pytest.mark.slow
def test_every_leaf_changes_the_hash_or_is_outside_it_by_name():
    wrong = []
    for leaf in leaves(CONFIG):
        changed = OmegaConf.create(CONFIG)
        OmegaConf.update(changed, leaf, "another", force_add=True)
        other = OmegaConf.to_container(changed)
        assert isinstance(other, dict)
        if (config_hash(other) == config_hash(CONFIG)) != outside(leaf):
            wrong.append(leaf)
    assert wrong == []


BASES = {  # together they choose every class that has leaves of its own
    "moe": ["model=moe"],
    "switch": ["model=moe", "model/router=switch", "model.mlp.k=1"],
    **{name: ["model=moe", f"model/router={name}"] for name in ROUTERS if name not in ("topk", "switch")},
    "capacity": ["model=moe", "model.mlp.capacity_factor=1.25"],
    "bert": ["model=bert", "objective=mlm", "schedule=cosine"],
    "expert choice": ["model=bert", "objective=mlm", "model/mlp=moe", "model/router=expert_choice"],
    "plain": ["model/attention=window", "model.attention.window=16", "model/mlp=gelu", "schedule=constant"],
    "delta": ["model/mlp=relu2", "model/attention=delta"],
    "pattern": ["model/attention=pattern", "model.attention.window.window=4"],
    "standard": ["model/parametrization=standard", "model/attention=none"],
    "muon": ["model=moe", "optimizer=muon"],
    "lion": ["optimizer=lion", "model/attention=latent"],
    "sgd": ["optimizer=sgd", "optimizer.lr=0.005"],
    "lstm": ["model=lstm"],
    **{name: [f"objective={name}", *TABLES[data]] for name, data in LEARNT.items()},
    "ipo": ["objective=dpo", "objective.loss=ipo", "objective.noise=0.1", *TABLES["preference"]],
    "tree": ["stages=trunk_and_cooldowns", "stages.branches=[1024,3072]"],
}


@cache
def leaves_by_class(base: str) -> dict[tuple[str, str], object]:
    """Leaves by (target of the node they stand in, key): the same argument of the same class needs one look."""

    def walk(node: dict, path: str, owner: str) -> dict[tuple[str, str], object]:
        owner, values = node.get("_target_", owner), {}
        for name, value in node.items():
            leaf = f"{path}.{name}" if path else str(name)
            values |= walk(value, leaf, owner) if isinstance(value, dict) else {(owner, leaf): value}
        return values

    return walk(compose(*BASES[base]), "", "")


def with_effect(base: str) -> dict[str, object]:
    """The leaves of a base that none before it has, less those that are to have no effect."""
    earlier = [leaves_by_class(name) for name in list(BASES)[: list(BASES).index(base)]]
    new = {key: value for key, value in leaves_by_class(base).items() if not any(key in leaves for leaves in earlier)}
    return {
        leaf: value
        for (_, leaf), value in new.items()
        if not outside(leaf) and leaf not in NO_EFFECT and leaf.split(".")[-1] not in SPECIAL
    }


def another(leaf: str, value: object) -> object:
    if leaf in OTHER:
        return OTHER[leaf]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"{leaf}={value!r}: give another value in OTHER, or a reason in NO_EFFECT"
    return value * 2


def outcome(folder: Path) -> list:
    """All that a run computed: logged rows without times, the curve, and what the summary counts."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    kept = ("metrics", "curve", "params", "tokens", "steps", "data", "flops")
    return [rows, *([stage[k] for k in kept] for stage in stages)]


@pytest.mark.slow
@pytest.mark.parametrize("base", [pytest.param(base, marks=[pytest.mark.long] * (base == "muon")) for base in BASES])
def test_every_leaf_has_an_effect(launch, base):
    options = [*BASES[base], "model.depth=2", "callbacks.log.every=1"]
    options += [] if base == "tree" else ["budget.steps=6"]
    plain = outcome(launch(*options))
    idle = []
    for leaf, value in with_effect(base).items():
        other = another(leaf, value)
        text = json.dumps(other) if isinstance(other, list) else str(other)
        clear = ["budget.steps=null"] if leaf.startswith("budget.") and leaf != "budget.steps" else []
        if outcome(launch(*options, f"{leaf}={text}", *clear)) == plain:
            idle.append(leaf)
    assert idle == []


@pytest.mark.slow
def test_every_leaf_has_another_value_or_a_reason_for_none():
    """Fast, so that a new key is noticed at once and not by the test of its effect alone."""
    values = [(leaf, value, another(leaf, value)) for base in BASES for leaf, value in with_effect(base).items()]
    assert values and all(value != other for _, value, other in values)


def test_the_bases_cover_every_class_of_a_run():
    chosen = {target for base in BASES for target, _ in leaves_by_class(base)}
    lines = [line.split() for path in FILES.values() for line in path.read_text().splitlines()]
    named = {line[1] for line in lines if line[:1] == ["_target_:"]}
    elsewhere = "data. training. runs. studies. launch. adapters. models.HFModel retention. evals. "
    elsewhere += "objectives.Distill objectives.GRPO "
    elsewhere = (*(f"kleiber.{name}" for name in (elsewhere + "optimizers.DPSGD").split()), "kleiber_topics.")
    assert {target for target in named - chosen if not target.startswith(elsewhere)} == set()
