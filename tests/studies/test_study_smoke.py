"""Every study, trained end to end at smoke size: its cells, its analysis and its findings.json."""

import json
from typing import NamedTuple

import jsonschema
import pytest
from small_run import REPOSITORY
from topic_choices import skip_without_topics

from kleiber.config.compose import Composer, list_choices
from kleiber.launch.main import main
from kleiber.records import archive
from kleiber.records.catalog import archived_runs, read_runs
from kleiber.studies.study import SCHEMA_FILE
from studies.canary_runs import MEMORIZATION
from studies.smoke_overrides import (
    ABLATION,
    ADAPTERS,
    AT_SCALE,
    BASELINES,
    COLLAPSE,
    COMPARE,
    CONTINUAL,
    EXPERTS,
    EXPLAIN,
    FEW_LABELS,
    FORGETTING_4M,
    ISOFLOP,
    JUDGED,
    LONGER_SUMS,
    PANEL,
    READING,
    REPEAT,
    SEARCH,
    SIX_DOMAINS,
    SUMS,
    SWEPT,
    TRANSFER,
    TRANSLATE,
    TUNED,
    UPCYCLING,
)

SMOKE = ["trainer=smoke", "launcher=basic", "logger=csv", "trainer.threads=1", "eval.tokens=2048"]
SMALL = ["eval.watch_tokens=1024", "batch.tokens=512", "model.depth=1", "model.context=64"]
NARROW = ["model.width=32", "model.num_heads=2"]
LITTLE_TEXT = "data.max_bytes=600K"  # reading all of the built-in text takes half a minute
LADDER = [
    "design.widths=[32,48,64]", "stages.branches=[1k,2k,4k,8k]", "batch.tokens=256", "trainer.max_steps=32",
    "study.min_tokens=500", "study.bootstrap=20",
]  # fmt: skip
BASE = "design.base={data.domain:docs,budget.tokens:10k,retention:null"
ONE_REPLAY = "replay:{retention.replay.fraction:[0.2]}"
SHARES = {"proposed": (0.2, 0.8), "proportional": (0.5, 0.5), "sampled": (0.8, 0.2)}  # of two domains
DOMAINS = [
    f"design.arms.{arm}={{data.parts:'{{builtin/docs:{docs},builtin/code:{code}}}'}}"
    for arm, (docs, code) in SHARES.items()
]
HAYSTACKS = ["data.lengths=[32,48]", "design.lrs=[0.01]"]
SMALL_STORE = ["evals.retrieval.sizes=[1k,4k]", "evals.retrieval.interpolations=[0.5]"]
OTHER_TEXT = ["data=text", "data.path={data}/tiny.txt", "evals.ood.data=[{data}/labelled.jsonl]"]
BIAS = ["design.arms={substitution:null,augmentation:null}", "design.seeds=1", "design.tokens=5k"]


TASTE = [
    "data.prompts={data}/tiny.txt", "data.pairs=12", "data.judgments=8", "data.noise=0.2", "data.answer_tokens=24",
    "data.utility={_target_: kleiber_topics.judging.WordShare, words: [e,t,a,o,i,n,s,r,h,l,d,c,m,u]}",
]  # fmt: skip
BY_LOSSES = (  # verdicts on a law that depend on the losses
    "approaches_disagree biased detectable fits_within_noise ill_conditioned lack_of_fit no_law not_settled "
    "overconfident pre_asymptotic settled suspects transient_not_tested"
)


class Expected(NamedTuple):
    """A study at smoke size: its overrides, its number of runs, and what findings.json says about so few points.

    codes           the codes of the verdicts on its law, separated by spaces
    not_identified  parameters of its law that the points do not determine, likewise, on any machine; None without a law
    decision        of a study that decides claims
    possible        codes of verdicts that it may have besides, by the losses: weights differ in their last digits
                    between machines, and at so few points that decides
    """

    overrides: list[str]
    runs: int
    codes: str
    not_identified: str | None = None
    decision: str | None = None
    possible: str = ""


STUDIES = {
    "ablation": Expected(ABLATION, 12, "", decision="not tested"),
    "accounting": Expected(
        [*LADDER, "design.seeds=1", "data.tokenizer=bytes", "data.vocab_size=null"],
        3,
        "narrow_input no_replicates not_identified",
        "E",
        possible=BY_LOSSES,
    ),
    "adapters": Expected([*ADAPTERS, *NARROW], 3, "", decision="not tested"),
    "at_scale": Expected(AT_SCALE, 14, "", decision="not tested"),
    "baselines": Expected(BASELINES, 6, "", decision="not tested"),
    "bias": Expected(BIAS, 8, "", decision="not tested"),
    "chain_of_thought": Expected(*SUMS, decision="not tested"),
    "chain_of_thought_128": Expected(*LONGER_SUMS, decision="not tested"),
    "clm_vs_mlm": Expected(
        ["design.widths=[32,48]", "stages.branches=[4k,8k]", "design.seeds=2"], 8, "", decision="undecided"
    ),
    "collaboration": Expected(*JUDGED, decision="not tested"),
    "collapse": Expected(COLLAPSE, 5, "", decision="not tested"),
    "compare": Expected(COMPARE, 4, "", decision="not tested"),
    "context": Expected(
        ["model.context=32,64", "data=recall", "batch.tokens=256", "eval.tokens=2048", "model.width=32"], 6, ""
    ),
    "continual": Expected(CONTINUAL, 4, "", decision="not tested"),
    "continual_domains": Expected(SIX_DOMAINS, 4, "", decision="not tested"),
    "data_repeat": Expected(REPEAT, 2, "no_law", decision="not tested"),
    "experts": Expected([*NARROW, *EXPERTS], 2, "", decision="not tested"),
    "explain": Expected(*EXPLAIN, decision="not tested"),
    "few_labels": Expected([*NARROW, *FEW_LABELS], 2, "", decision="not tested"),
    "forgetting": Expected(
        [
            f"{BASE}}}",
            f"design.arms={{ewc:null,lwf:null,agem:null,l2sp:null,generated:null,{ONE_REPLAY}}}",
            "design.lrs=[0.01]",
            "design.seeds=1",
            "design.tokens=5k",
        ],
        3,
        "",
        decision="not tested",
    ),
    "forgetting_4m": Expected([*NARROW, *FORGETTING_4M], 4, "", decision="not tested"),
    "forgetting_law": Expected(
        [
            f"{BASE},model.width:[32,48],budget.ratio:null}}",
            f"design.arms={{{ONE_REPLAY}}}",
            "design.tokens=[3k,6k]",
            "study.bootstrap=20",
            "design.seeds=1",
        ],
        10,
        "ill_conditioned no_backtest not_identified",
        "A B alpha beta c gamma",
        decision="not tested",
    ),
    "instructions": Expected(*TUNED, decision="not tested"),
    "isoflop": Expected(*ISOFLOP, possible=BY_LOSSES),
    "memorization": Expected(*MEMORIZATION, decision="not tested"),
    "mixture_arms": Expected([*DOMAINS, "design.seeds=1"], 3, "", decision="not tested"),
    "moe_forgetting": Expected(
        [f"{BASE},model:[gpt,moe]}}", "design.lrs=[0.03]", "design.seeds=1", "design.tokens=5k"],
        5,
        "",
        decision="not tested",
    ),
    "mixture": Expected(["design.mixtures=8", "design.held_out=2", *NARROW], 10, ""),
    "moe_gain": Expected(
        [
            "design.arms={moe:{stages.branches:[[4k,8k]]},dense:{stages.branches:[[4k,8k]]}}",
            "~design.arms.moe_96",
            "~design.arms.dense_96",
            "stages.branches=[4k,8k]",
            "design.seeds=1",
            "study.claims=[{arm:moe,against:dense}]",
            *NARROW,
        ],
        2,
        "",
        decision="not tested",
    ),
    "moe_law": Expected(["model.mlp.num_experts=2,4,8", "design.widths=[32]", "stages.branches=[4k,8k]"], 3, "no_law"),
    "hyperparameters": Expected(SWEPT, 8, "few_groups few_runs no_backtest not_identified", "a b c d e"),
    "mup_transfer": Expected(
        ["design.widths=[32,64]", "optimizer.lr=0.001,0.01,0.3", "design.seeds=1", "study.around=1"], 12, ""
    ),
    "needle": Expected([*HAYSTACKS, "design.seeds=2"], 36, "", decision="not tested"),
    "ood": Expected([*OTHER_TEXT, "design.seeds=2"], 12, "", decision="contradicted"),
    "reading": Expected([*NARROW, *READING], 1, "", decision="not tested"),
    "retrieval": Expected(
        [f"{BASE}}}", f"design.arms={{{ONE_REPLAY}}}", "design.seeds=1", "design.tokens=5k", *SMALL_STORE],
        3,
        "",
        decision="not tested",
    ),
    "panel": Expected(PANEL, 2, "", decision="not tested"),
    "routers": Expected(
        ["design.lrs=[0.03]", "design.seeds=1", "design.arms.unbalanced={model.mlp.balance.coefficient: 0.0}"],
        6,
        "",
        decision="not tested",
    ),
    "scaling": Expected(
        [*LADDER, "design.seeds=[2,1,1]"],
        4,
        "narrow_input no_replicates not_identified",
        "E",
        possible=BY_LOSSES,
    ),
    "search": Expected(*SEARCH),
    "sparsity": Expected(
        [
            "design.lrs=[0.03]",
            "design.seeds=1",
            "stages.branches=[8192]",
            "design.arms={moe:{stages.branches:[[4096,8192]]},dense:{stages.branches:[[4096,8192]]}}",
        ],
        4,
        "",
        decision="not tested",
    ),
    "quantization": Expected(["design.widths=[32]", "stages.branches=[4k,8k]"], 1, "", decision="not tested"),
    "rl_forgetting": Expected(
        [
            "init.path={dense}",
            "design.arms={rejection:null,dpo:null,sft:{optimizer.lr:[0.01]},grpo:{optimizer.lr:[0.01]}}",
            "design.seeds=1",
            "evals.reward={samples:1,limit:8}",
            "evals.divergence.limit=8",
            "evals.perplexity.data=[{data}/tiny.txt]",
        ],
        2,
        "",
        decision="not tested",
    ),
    "rlhf": Expected(
        [
            "init=checkpoint",
            "init.path={dense}",
            "data.model={dense}",
            "evals.proxy_reward.reward_path={taste}",
            *TASTE,
            "evals.perplexity.data=[{data}/tiny.txt]",
            "design.seeds=1",
        ],
        3,
        "",
        decision="not tested",
    ),
    "schedules": Expected(["design.seeds=1", "design.law=null"], 3, "", decision="not tested"),
    "stability": Expected(["design.lrs=[0.003,0.03]", "design.seeds=2"], 32, ""),
    "task_scaling": Expected(
        [*TRANSLATE, "design.widths=[32,48]", "stages.branches=[2k,4k]", "design.seeds=1"], 2, "", decision="not tested"
    ),
    "tasks": Expected(
        [
            "data=task",
            "data.path={data}/instruct.jsonl",
            "data.prompt='{question}'",
            "data.target='{answer}'",
            "design.arms={prefix:null,scratch_100:null,pretrained_100:null,scratch_10:null,pretrained_10:null,"
            "scratch_1:{data.tokenizer:bytes,budget.tokens:2k},pretrained_1:{budget.tokens:2k}}",
            "design.fill.base=[{dense}]",
            "design.seeds=1",
            "evals.generation.limit=4",
            "study.claims=[{of:{arm:pretrained_1},against:{arm:scratch_1}}]",
        ],
        2,
        "",
        decision="not tested",
    ),
    "transfer": Expected(TRANSFER, 9, "", decision="not tested"),
    "upcycling": Expected(
        ["design.lrs=[0.03]", "design.seeds=1", "design.fill.base=[{dense}]", "budget.flops=2e9", UPCYCLING, *NARROW],
        3,
        "",
        decision="not tested",
    ),
}


# A quarter of a minute or more.
LONG = ("collaboration", "collapse", "memorization", "needle", "retrieval", "rl_forgetting", "rlhf")
CODES = {None: 0, "supported": 0, "undecided": 3, "not tested": 3, "contradicted": 5}


def start(name, root):
    """Trains and analyzes a study; returns its folder. The exit code is that of its claims."""
    overrides = [text.replace("{data}", str(REPOSITORY / "tests/data")) for text in STUDIES[name].overrides]
    if any("{dense}" in text for text in overrides):
        base = str(trained_base(root))
        overrides = [text.replace("{dense}", base) for text in overrides]
    if any("{taste}" in text for text in overrides):
        overrides = [text.replace("{taste}", str(reward_model(root, base))) for text in overrides]
    words = [f"study={name}", *SMOKE, *SMALL, *overrides, f"root={root}"]
    data = [word for word in overrides if word.startswith("data=")]
    if "max_bytes" in Composer().compose([f"study={name}", *data])["data"]:
        words.append(LITTLE_TEXT)
    code = main(words)
    assert code == CODES[json.loads((root / name / "findings.json").read_text())["decision"]]
    return root / name


def trained_base(root):
    """The dense run that upcycling starts from."""
    assert main([*SMOKE, *SMALL, *NARROW, f"root={root}"]) == 0
    return next(root.glob("runs/*"))


def reward_model(root, base):
    """The reward model of study=rlhf."""
    judged = [text.replace("{data}", str(REPOSITORY / "tests/data")) for text in TASTE]
    start = ["init=checkpoint", f"init.path={base}", "data=judged", f"data.model={base}", "objective=reward"]
    assert main([*SMOKE, *SMALL, *NARROW, *start, *judged, "name=taste", f"root={root}"]) == 0
    return next(root.glob("taste/*"))


def test_every_study_has_its_line():
    assert {*list_choices("study")} <= set(STUDIES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model.mlp.balance.coefficient=0")  # the arm `unbalanced` of study=routers
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in list_choices("study")]
)
def test_a_study_is_trained_and_analyzed(name, tmp_path, cache_dir):
    folder, expected = start(name, tmp_path), STUDIES[name]
    runs = read_runs(folder)
    assert len(runs) == expected.runs and {run.status for run in runs} == {"finished"}
    findings = json.loads((folder / "findings.json").read_text())
    jsonschema.validate(findings, json.loads(SCHEMA_FILE.read_text()))
    assert findings["study"] == name and findings["decision"] == expected.decision
    codes, levels = ({verdict[key] for verdict in findings["verdicts"]} for key in ("code", "level"))
    assert set(expected.codes.split()) <= codes <= {*expected.codes.split(), *expected.possible.split()}
    assert levels <= {"refuse", "warn", "note"} and findings["refused"] == ("refuse" in levels)
    assert findings["missing"] == []
    has_law = expected.not_identified is not None
    assert (findings["laws"] == "laws.json") == has_law == (folder / "laws.json").is_file()
    law = json.loads((folder / "laws.json").read_text()) if has_law else {"params": {}}
    assert set((expected.not_identified or "").split()) <= set(findings["not_identified"]) <= set(law["params"])
    assert (
        any(findings["tables"].values()) and (folder / "report.html").is_file() and list(folder.glob("figures/*.svg"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data_repeat", "transfer"])
def test_a_second_start_trains_nothing(name, tmp_path, cache_dir):
    skip_without_topics(f"study={name}")

    def written():
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/summary.json")}

    start(name, tmp_path)
    before = written()
    start(name, tmp_path)
    assert written() == before and len(before) == STUDIES[name].runs
    lines = [line for path in before for line in (path.parent / "log.txt").read_text().splitlines()]
    assert any(" resume " in line for line in lines)
    assert not any("study=" in line for line in lines), "the command of one run would start the study with its values"


ARMS = "{ewc: null, lwf: null, agem: null, l2sp: null, generated: null, replay: {retention.replay.fraction: [0.2]}}"
MOVED = {
    "data_repeat": [
        "data.unique=null,10k",
        "design.widths=[32]",
        "design.seeds=1",
        "budget.tokens=null",
        "study.max_cells=4",
    ],
    "forgetting": [f"design.arms={ARMS}", "design.lrs=[0.01,0.02]", "study.seeds=2", "design.tokens=null"],
}
MEASURED = {"seconds", "cost", "ms a step", "MiB"}  # of the machine, which no seed makes the same


def unmeasured(node):
    if isinstance(node, dict):
        return {key: unmeasured(value) for key, value in node.items() if key not in MEASURED}
    return [unmeasured(value) for value in node] if isinstance(node, list) else node


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVED)
def test_a_study_goes_on_in_another_place_from_its_rows_alone(name, tmp_path, cache_dir, capsys):
    """Nothing is trained there and it finds the same; of a cell that is missing, that one and what it starts from."""
    command = [f"study={name}", *SMOKE, "batch.tokens=512", "study.max_cells=99", *MOVED[name]]
    code = main([*command, f"root={tmp_path / 'one'}"])
    first, second, third = (tmp_path / place / name for place in ("one", "two", "three"))
    rows = archive.read(first / archive.NAME)
    findings = json.loads((first / "findings.json").read_text())
    dropped = rows[-1]["run"]
    for place, kept in ((second, rows[::-1]), (third, [row for row in rows if row["run"] != dropped])):
        place.mkdir(parents=True)
        archive.append(place / archive.NAME, kept)
        capsys.readouterr()
        assert main([*command, f"root={place.parent}"]) == code
        again = json.loads((place / "findings.json").read_text())
        assert unmeasured(again) == unmeasured(findings)
        assert place == third or all(again[key] == findings[key] for key in ("seconds", "cost"))
    assert not list(second.glob("*/config.yaml"))
    trained = {path.parent.name for path in third.glob("*/summary.json")}
    bases = {run.name for run in archived_runs(first / archive.NAME) if run.config["init"] is None}
    assert len(trained - bases) == (1 if name == "forgetting" else 0)
    assert len(trained & bases) == 1
