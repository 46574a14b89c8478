"""A law: one function of inputs and parameters; its signature says how the parameters are searched.

Arguments before `*` are inputs (columns of a table); keyword-only arguments are parameters, whose annotation says how
they are searched. The function must be elementwise numpy: inputs arrive with shape (rows,), parameters with shape
(draws, 1), so a thousand refits are one broadcast call.

A law of your own, in any file, fitted with `--law my_law.py:floor_only`:

    from kleiber.studies.laws.law import Array, Exponent, Part

    def floor_only(N: Array, *, E: Part, A: Part, alpha: Exponent):
        '''My law: L = E + A N^-alpha.'''
        return E + A * N**-alpha
"""

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """The factor of an additive term: solved exactly for given shapes; non-negative unless `signed`."""

    signed: bool = False
    log = property(lambda self: not self.signed)


@dataclass(frozen=True)
class Shape:
    """A parameter inside a power or a product: searched over [lo, hi], on a log scale (then > 0) if `log`."""

    lo: float
    hi: float
    log: bool = True


def bounds(kind: Linear | Shape) -> tuple[float, float]:
    """The values that a parameter may take."""
    if isinstance(kind, Shape):
        return kind.lo, kind.hi
    return (-np.inf if kind.signed else 0.0), np.inf


Part = Annotated[Array, Linear()]
Signed = Annotated[Array, Linear(signed=True)]
Exponent = Annotated[Array, Shape(0.05, 1.6)]
Scale = Annotated[Array, Shape(1.0, 1e30)]
Real = Annotated[Array, Shape(-1.0, 1.0, log=False)]

Derived = Callable[[Mapping[str, Array]], Array]
Function = Callable[..., Any]  # inputs by position, parameters by name


@dataclass(frozen=True)
class Law:
    """The form of a law: its function, inputs and parameters, and the objective with which its source fits it.

    `returns` is the scale of the function's value (linear or log10), `space` the scale of the residuals, `loss_fn` the
    loss on them. `start` names a simpler law whose fit gives starting values of the shared parameters. `fixed` holds
    the values of parameters that are not fitted (`fix`).
    """

    name: str
    function: Function
    inputs: tuple[str, ...]
    params: Mapping[str, Linear | Shape]
    formula: str
    source: str
    returns: str = "linear"
    space: str = "log"
    loss_fn: str = "huber"
    start: str | None = None
    aliases: tuple[str, ...] = ()
    derived: Mapping[str, Derived] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)

    def fix(self, values: Mapping[str, float]) -> "Law":
        """The law with some of its parameters held at `values`.

        Errors: ValueError for an unknown parameter, for a value outside its search range, and when no parameter is left
        to fit.
        """
        for name, value in values.items():
            if name not in self.params:
                near = difflib.get_close_matches(name, self.params, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(
                    f"--fix {name}={value:g}: law {self.name!r} has no parameter {name!r}{hint} "
                    f"Parameters: {', '.join(self.params)}"
                )
            lo, hi = bounds(self.params[name])
            if not (np.isfinite(value) and lo <= value <= hi):
                allowed = f"in [{lo:g}, {hi:g}]" if np.isfinite(hi) else "finite and >= 0" if lo == 0 else "finite"
                raise ValueError(f"--fix {name}={value:g}: {name} of law {self.name!r} must be {allowed}")
        free = {name: kind for name, kind in self.params.items() if name not in values}
        if not free:
            raise ValueError(f"--fix {', '.join(values)}: no parameter is left to fit; --at evaluates given parameters")
        return replace(self, params=free, fixed={**self.fixed, **values})

    def named(self, values: Array) -> dict[str, Array]:
        """Every parameter by name, fixed ones included, (draws,), from rows `values` (draws, params)."""
        held = {name: np.full(len(values), value) for name, value in self.fixed.items()}
        return {**held, **{name: values[:, j] for j, name in enumerate(self.params)}}

    @property
    def linear(self) -> list[int]:
        """Positions of the parameters that enter linearly, in the order of `params`."""
        return [j for j, kind in enumerate(self.params.values()) if isinstance(kind, Linear)]

    @property
    def shapes(self) -> list[int]:
        """Positions of the parameters that are searched, in the order of `params`."""
        return [j for j, kind in enumerate(self.params.values()) if isinstance(kind, Shape)]

    @property
    def log(self) -> NDArray[np.bool_]:
        """True where the solver works on the logarithm of the parameter, which keeps it positive."""
        return np.array([kind.log for kind in self.params.values()])

    def evaluate(self, inputs: Mapping[str, Array], values: Array) -> Array:
        """The function's value (draws, rows) on its scale `returns`, for parameter rows `values` (draws, params)."""
        return self.call(inputs, {name: column[:, None] for name, column in self.named(values).items()})

    def call(self, inputs: Mapping[str, Array], named: Mapping[str, Array]) -> Array:
        """The same for parameters by name, each of shape (draws, 1). ValueError where the function fails."""
        rows, draws = len(next(iter(inputs.values()))), len(next(iter(named.values())))
        try:
            with np.errstate(all="ignore"):
                answer = self.function(*(inputs[name] for name in self.inputs), **named)
            return np.broadcast_to(np.asarray(answer, dtype=np.float64), (draws, rows))
        except MemoryError:
            raise
        except Exception as error:  # a user's law may do anything
            raise ValueError(
                f"law {self.name!r} fails on its inputs: {type(error).__name__}: {error}; it must be elementwise "
                f"numpy, of inputs ({rows},) and parameters ({draws}, 1)"
            ) from error

    def predict(self, inputs: Mapping[str, Array], values: Array) -> Array:
        """The predicted target in its units, (draws, rows)."""
        answer = self.evaluate(inputs, np.atleast_2d(values))
        return 10.0**answer if self.returns == "log10" else answer

    def derive(self, values: Array) -> dict[str, Array]:
        """Quantities that follow from the parameters alone, such as the allocation exponent, (draws,) each."""
        named = self.named(values)
        with np.errstate(all="ignore"):
            return {name: rule(named) for name, rule in self.derived.items()}


def describe(function: Function) -> Law:
    """The Law of a function, from its signature and docstring; ValueError when a parameter has no search rule."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ValueError(f"{function.__name__}: an annotation cannot be read: {error}") from error
    inputs, params = [], {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            inputs.append(name)
            continue
        rules = [rule for rule in get_args(hints.get(name)) if isinstance(rule, (Linear, Shape))]
        if not rules:
            raise ValueError(
                f"{function.__name__}: parameter {name!r} does not say how it is searched; "
                "annotate it as Part, Signed, Exponent, Scale, Real or Annotated[Array, Shape(lo, hi)]"
            )
        params[name] = rules[0]
    if not inputs or not params:
        raise ValueError(f"{function.__name__}: a law has inputs before `*` and parameters after it")
    text = inspect.getdoc(function) or ""
    first = text.split("\n")[0].rstrip(".")
    source = next((line[7:].strip() for line in text.split("\n") if line.startswith("Source:")), "user")
    formula = first.split(": ", 1)[-1]
    return Law(function.__name__, function, tuple(inputs), params, formula, source)


LAWS: dict[str, Law] = {}


def law(
    *, returns: str = "linear", space: str = "log", loss_fn: str = "huber", start: str | None = None,
    aliases: tuple[str, ...] = (), derived: Mapping[str, Derived] | None = None,
) -> Callable[[Function], Function]:  # fmt: skip
    """Decorator that enters a function into the shipped laws; arguments are the fields of `Law`."""

    def enter(function: Function) -> Function:
        LAWS[function.__name__] = replace(
            describe(function), returns=returns, space=space, loss_fn=loss_fn, start=start, aliases=aliases,
            derived=derived or {},
        )  # fmt: skip
        return function

    return enter


def from_file(name: str) -> Law:
    """The law written as function FN of a file, `name` FILE.py:FN.

    Errors: ValueError for an absent file, one that does not import and one without that function.
    """
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"law {name!r}: no file {path!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"law {name!r}: {path} does not import: {type(error).__name__}: {error}") from error
    form = vars(module).get(function)
    if not callable(form):
        functions = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        names = ", ".join(functions) or "none"
        raise ValueError(f"law {name!r}: {path} has no function {function!r}; it has {names}")
    entered = [entry for entry in LAWS.values() if entry.function is form]
    return entered[0] if entered else describe(form)  # @law(..) holds more than the signature
