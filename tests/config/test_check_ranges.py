"""Every number that a config can set has a declared range, and a value outside of it is refused by its key."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen, MultipleOf
from pydantic import AllowInfNan

from kleiber.config.check import PLAIN, BatchSize, EvalSettings, bounds, check_arguments
from kleiber.config.cost import Cost
from kleiber.config.errors import ConfigError
from kleiber.config.extensions import Parameter, Signature, conf_dir, extension_folders, runtime_signature
from kleiber.config.stages import Budget, Quantity
from kleiber.config.targets import SUPPLIED, signature
from kleiber.types import Positive

# Numbers without a range: only the run supplies them.
FREE: set[str] = set()
NUMBERS = (int, float)
STEP = {"gt": 0, "ge": -1, "lt": 0, "le": 1}  # from a bound to the next whole number outside


def all_signatures() -> dict[str, Signature]:
    """The signature of every class in conf/, and of the plain nodes of a config."""
    files = [path for folder in (conf_dir(), *extension_folders()) for path in folder.rglob("*.yaml")]
    lines = [line.split() for path in files for line in path.read_text().splitlines()]
    targets = {parts[1] for parts in lines if parts[:1] == ["_target_:"]}
    read = {target: signature(target) for target in targets}
    plain = {name: Parameter(kind) for name, kind in PLAIN.items() if not isinstance(kind, type)}
    nodes = {kind.__name__: runtime_signature(kind, kind.__name__) for kind in (BatchSize, EvalSettings, Budget, Cost)}
    return read | nodes | {"config": Signature("config", plain)}


SIGNATURES = all_signatures()
ARGUMENTS = [
    (target, name) for target, read in sorted(SIGNATURES.items()) for name in sorted(read.parameters.keys() - SUPPLIED)
]


def annotation(target: str, name: str) -> object:
    return SIGNATURES[target].parameters[name].annotation


def leaves(kind: object) -> Iterator[object]:
    """The numbers within a type, each with its range: `Annotated[float, Gt(0)]` within a list, a mapping or a union."""
    inner = get_args(kind)
    if kind in NUMBERS or (get_origin(kind) is Annotated and set(get_args(inner[0]) or inner[:1]) & set(NUMBERS)):
        yield kind
    elif get_origin(kind) is not Literal:
        for part in inner[:1] if get_origin(kind) is Annotated else inner:
            yield from leaves(part)


def values_with(kind: object, value: float) -> Iterator[object]:
    """Values of a type in which every number is `value`."""
    origin, inner = get_origin(kind), get_args(kind)
    if any(leaf == kind for leaf in leaves(kind)):
        yield value
    elif origin is Annotated:
        yield from values_with(inner[0], value)
    elif origin is tuple:
        yield [value] * len(inner)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from ({"N": within} for within in values_with(inner[1], value))
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        yield from ([within] for within in values_with(inner[0], value))
    elif origin is not Literal:
        for part in inner:
            yield from values_with(part, value)


def refused(target: str, name: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_arguments("node", SIGNATURES[target], {name: value})
    return str(caught.value)


def test_the_walk_meets_the_numbers_of_every_room():
    assert len([1 for target, name in ARGUMENTS if list(leaves(annotation(target, name)))]) > 200


def test_every_number_declares_its_range():
    kinds = {f"{target}.{name}": leaves(annotation(target, name)) for target, name in ARGUMENTS}
    assert {name for name, found in kinds.items() if not all(bounds(leaf) for leaf in found)} == FREE


def test_a_value_just_outside_of_a_range_is_refused_by_key_and_bound():
    for target, name in ARGUMENTS:
        kind = annotation(target, name)
        for leaf in leaves(kind):
            for bound, limit in bounds(leaf):
                for value in values_with(kind, limit + STEP[bound]):
                    error = refused(target, name, value)
                    assert f"node.{name}={value} must " in error, (target, error)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_number_that_is_not_finite_is_refused_by_its_key(value):
    for target, name in ARGUMENTS:
        for outer in values_with(annotation(target, name), value):
            assert f"node.{name}={outer} must be finite" in refused(target, name, outer), target


def test_what_has_no_type_must_be_finite_too():
    anything = Signature("mine", {}, open=True)
    with pytest.raises(ConfigError, match=r"node\.a=\{'b': \[nan\]\} must be finite"):
        check_arguments("node", anything, {"a": {"b": [math.nan]}})


class Mine:
    """A class of a user, imported; its ranges are declared as kleiber's own."""

    def __init__(
        self,
        rate: Positive = 1.0,
        part: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
        even: Annotated[int, MultipleOf(2), Ge(0)] = 2,
        label: Annotated[str, Len(2, 4)] = "abc",
        names: Annotated[Sequence[str], MinLen(1), MaxLen(2)] = ("a",),
        tokens: Annotated[Quantity, Le(10**6)] = "1M",
        score: Annotated[float, AllowInfNan()] = 0.0,
        size: Annotated[int, Gt(0), Lt(5)] | Literal["auto"] = "auto",
        anything: Any = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("name", "value", "requirement"),
    [
        ("rate", 0, "be > 0"),
        ("rate", math.nan, "be finite and > 0"),
        ("part", 1.0, "be < 1"),
        ("part", math.inf, "be finite and > 0 and < 1"),
        ("even", 3, "be a multiple of 2"),
        ("even", -2, "be >= 0"),
        ("label", "a", "at least 2"),
        ("label", "abcdef", "at most 4"),
        ("names", [], "at least 1"),
        ("names", ["a", "b", "c"], "at most 2"),
        ("tokens", "2M", "be <= 1000000"),
        ("tokens", "0", "be a positive number"),
        ("tokens", True, "integer"),
        ("size", 5, "be < 5 or be 'auto'"),
        ("anything", math.nan, "be finite"),
    ],
    ids=str,
)
def test_ranges_of_an_imported_class_are_checked(name, value, requirement):
    with pytest.raises(ConfigError) as caught:
        check_arguments("mine", runtime_signature(Mine, "Mine"), {name: value})
    assert f"mine.{name}={value} must " in str(caught.value) and requirement in str(caught.value)


@pytest.mark.parametrize("setting", [{"score": math.inf}, {"tokens": "1M"}, {"size": 4}, {"part": 0.5}], ids=str)
def test_values_within_the_ranges_of_an_imported_class_are_accepted(setting):
    check_arguments("mine", runtime_signature(Mine, "Mine"), setting)


OUTSIDE = [
    ("adapters.LoRA", "rank", 0),
    ("data.Labelled", "share", 0.0),
    ("data.Text", "max_bytes", "many"),
    ("launch.Submitit", "timeout_min", 1),
    ("nn.SwiGLU", "hidden", 0),
    ("nn.WindowAttention", "window", 0),
    ("nn.interleaved_moe", "capacity_factor", 0.0),
    ("nn.interleaved_moe", "num_experts", 1),
    ("nn.interleaved_moe", "num_shared", -1),
    ("nn.load_balance_loss", "coefficient", -0.1),
    ("nn.routers.LossFree", "rate", 0.0),
    ("nn.routers.Sinkhorn", "iterations", 0),
    ("optimizers.AdamW", "eps", 0.0),
    ("optimizers.Muon", "eps", 0.0),
    ("objectives.DPO", "beta", 0.0),
    ("objectives.DPO", "noise", 0.5),
    ("objectives.Distill", "mix", 0.0),
    ("objectives.MLM", "mask_share", 1.0),
    ("optimizers.AdamW", "betas", [0.9, 1.0]),
    ("optimizers.Lion", "clip", 0.0),
    ("optimizers.Muon", "momentum", 1.0),
    ("optimizers.WSD", "decay", 20.0),
    ("retention.EWC", "gamma", 1.5),
    ("retention.LwF", "generated_tokens", "-5"),
    ("retention.Replay", "fraction", 0.0001),
    ("retention.Replay", "temperature", 0.0),
    ("retention.WiSE", "alphas", [0.5, 1.5]),
    ("retention.WiSE", "alphas", []),
    ("runs.TrunkAndCooldowns", "branches", []),
    ("studies.Forgetting", "level", 1.0),
    ("training.callbacks.EMA", "decay", 1.0),
    ("evals.Latency", "batches", [0]),
    ("training.callbacks.RoutingHealth", "entropy", 2.0),
    ("training.callbacks.Stability", "norms", 1.0),
    ("training.callbacks.Stability", "window", 5),
]


@pytest.mark.parametrize(("target", "name", "value"), OUTSIDE, ids=str)
def test_what_makes_no_sense_is_outside_of_the_range(target, name, value):
    assert f"node.{name}={value} must " in refused(f"kleiber.{target}", name, value)


ABSURD = [
    "callbacks.checkpoints.keep=0",
    "callbacks.samples.num=-1",
    "callbacks=[default,ema] callbacks.ema.decay=nan",
    "budget.stop_at_loss=nan",
    "model.rope_theta=nan",
    "model.norm_eps=nan",
    "model.norm_eps=inf",
    "adapter=lora adapter.alpha=nan",
    "retention=l2sp stages=docs_then_code retention.l2sp.strength=nan",
    "batch.tokens=1T",
    "batch.tokens=0",
    f"batch.tokens=1{'0' * 400}",
    f"optimizer.lr=1{'0' * 400}",
    "callbacks.samples.length=1000000000",
    "trainer.threads=1000000",
    "stages=trunk_and_cooldowns stages.branches=[0]",
    "data.tokenizer=bpe data.vocab_size=10000000000",
    "model=moe model.mlp.num_experts=100000",
    "model.depth=100000",
    f"name={'x' * 300}",
]


@pytest.mark.slow
@pytest.mark.parametrize("override", ABSURD, ids=lambda override: override[:60])
def test_the_command_ends_with_2_and_names_the_key(override, tmp_path, monkeypatch, capsys):
    from kleiber.launch.main import main

    monkeypatch.chdir(tmp_path)
    assert main(override.split()) == 2
    key, _, value = override.split()[-1].partition("=")
    error = capsys.readouterr().err
    assert f"{key}=" in error and value.strip("[]")[:20] in error
    assert not list(tmp_path.iterdir())
