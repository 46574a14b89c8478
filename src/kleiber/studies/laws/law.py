"""A law is a function of inputs and parameters; its signature tells the solver how to search for the parameters.

Arguments before `*` are inputs, that is, columns of a table. Keyword-only arguments are parameters; the annotation of
each says how it is searched. The function must be elementwise numpy: inputs have the shape (rows,) and parameters the
shape (draws, 1), so that a thousand refits are evaluated in one call.

You can write a law in any file and fit it with `--law my_law.py:floor_only`:

    from kleiber.studies.laws.law import Array, Exponent, Part

    def floor_only(N: Array, *, E: Part, A: Part, alpha: Exponent):
        '''My law: L = E + A N^-alpha.'''
        return E + A * N**-alpha
"""

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from kleiber.config.extensions import import_function
from kleiber.types.score import format_interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """A parameter that multiplies a term of a sum, such as A in A N^-alpha; non-negative unless `signed`.

    It is solved by linear least squares once the shapes are fixed.
    """

    signed: bool = False
    hi: ClassVar = np.inf
    log = property(lambda self: not self.signed)
    lo = property(lambda self: -np.inf if self.signed else 0.0)


@dataclass(frozen=True)
class Shape:
    """A parameter that enters nonlinearly, such as an exponent; searched in [lo, hi], on a log scale if `log`."""

    lo: float
    hi: float
    log: bool = True


Part = Annotated[Array, Linear()]
Signed = Annotated[Array, Linear(signed=True)]
Exponent = Annotated[Array, Shape(0.05, 1.6)]
Scale = Annotated[Array, Shape(1.0, 1e30)]
Real = Annotated[Array, Shape(-1.0, 1.0, log=False)]

Derived = Callable[[Mapping[str, Array]], Array]
Function = Callable[..., object]  # inputs by position, parameters by name


@dataclass(frozen=True)
class Law:
    """A law: its function, inputs and parameters, and the objective with which its publication fits it.

    returns  scale of the function's value: linear or log10
    space    scale of the residuals: log, linear or log10
    loss_fn  loss function of the residuals
    start    name of a simpler law that is fitted first; its parameters are starting values of the same names
    fixed    values of the parameters that are not fitted, see `fix`
    swept    further inputs, of which the law uses those that a table has
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
    swept: tuple[str, ...] = ()

    def for_params(self, names: Collection[str]) -> "Law":
        """Returns the variant of the law that has the parameters `names`; most laws have only one."""
        return self

    def fix(self, values: Mapping[str, float]) -> "Law":
        """Returns the law with some of its parameters fixed at `values`.

        Raises ValueError for an unknown parameter, a value outside its search range, and if no parameter remains to be
        fitted.
        """
        for name, value in values.items():
            if name not in self.params:
                near = difflib.get_close_matches(name, self.params, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(
                    f"--fix {name}={value:g}: law {self.name!r} has no parameter {name!r}{hint} "
                    f"Its parameters: {', '.join(self.params)}"
                )
            lo, hi = self.params[name].lo, self.params[name].hi
            if not (np.isfinite(value) and lo <= value <= hi):
                allowed = (
                    f"in {format_interval(lo, hi, 'g')}"
                    if np.isfinite(hi)
                    else "finite and >= 0"
                    if lo == 0
                    else "finite"
                )
                raise ValueError(f"--fix {name}={value:g}: {name} of law {self.name!r} must be {allowed}")
        free = {name: kind for name, kind in self.params.items() if name not in values}
        if not free:
            raise ValueError(
                f"--fix {', '.join(values)} fixes every parameter of {self.name!r}, so none is left to fit; use --at "
                "to evaluate the law at these values"
            )
        return replace(self, params=free, fixed={**self.fixed, **values})

    def named(self, values: Array) -> dict[str, Array]:
        """Returns every parameter by name, including fixed ones, (draws,) each, from `values` (draws, params)."""
        held = {name: np.full(len(values), value) for name, value in self.fixed.items()}
        return {**held, **{name: values[:, j] for j, name in enumerate(self.params)}}

    @property
    def linear(self) -> list[int]:
        """Positions in `params` of the parameters that enter linearly."""
        return [j for j, kind in enumerate(self.params.values()) if isinstance(kind, Linear)]

    @property
    def shapes(self) -> list[int]:
        """Positions in `params` of the parameters that enter nonlinearly."""
        return [j for j, kind in enumerate(self.params.values()) if isinstance(kind, Shape)]

    @cached_property
    def log(self) -> NDArray[np.bool_]:
        """Mask of the parameters of which the solver uses the logarithm, so that they stay positive."""
        return np.array([kind.log for kind in self.params.values()])

    def evaluate(self, inputs: Mapping[str, Array], values: Array) -> Array:
        """Evaluates the function on its own scale `returns` for parameters (draws, params); returns (draws, rows)."""
        return self.call(inputs, {name: column[:, None] for name, column in self.named(values).items()})

    def call(self, inputs: Mapping[str, Array], named: Mapping[str, Array]) -> Array:
        """Evaluates the function for parameters by name, each (draws, 1). Raises ValueError if the function fails."""
        rows, draws = len(next(iter(inputs.values()))), len(next(iter(named.values())))
        try:
            with np.errstate(all="ignore"):
                answer = self.function(*(inputs[name] for name in self.inputs), **named)
            answer = np.asarray(answer, dtype=np.float64)
            return answer if answer.shape == (draws, rows) else np.broadcast_to(answer, (draws, rows))
        except MemoryError:
            raise
        except Exception as error:  # a user's law may do anything
            raise ValueError(
                f"law {self.name!r} raises {type(error).__name__}: {error}; it must be elementwise numpy for inputs of "
                f"the shape ({rows},) and parameters of the shape ({draws}, 1)"
            ) from error

    def predict(self, inputs: Mapping[str, Array], values: Array) -> Array:
        """Predicts the target in its own units, (draws, rows)."""
        answer = self.evaluate(inputs, np.atleast_2d(values))
        return 10.0**answer if self.returns == "log10" else answer

    def derive(self, values: Array) -> dict[str, Array]:
        """Returns the derived quantities, such as the allocation exponent, (draws,) each."""
        named = self.named(values)
        with np.errstate(all="ignore"):
            return {name: rule(named) for name, rule in self.derived.items()}


def describe(function: Function) -> Law:
    """Builds the `Law` of a function from its signature and docstring.

    Raises ValueError if it has no inputs or parameters, or a parameter without a search annotation.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ValueError(f"{function.__name__}: an annotation cannot be evaluated: {error}") from error
    inputs, params = [], {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            inputs.append(name)
            continue
        rules = [rule for rule in get_args(hints.get(name)) if isinstance(rule, (Linear, Shape))]
        if not rules:
            raise ValueError(
                f"{function.__name__}: parameter {name!r} has no annotation that says how to search for it; annotate "
                "it as Part, Signed, Exponent, Scale, Real or Annotated[Array, Shape(lo, hi)]"
            )
        params[name] = rules[0]
    if not inputs or not params:
        raise ValueError(
            f"{function.__name__}: a law needs at least one input before `*` and one parameter after it, such as "
            "def law(N: Array, *, A: Part)"
        )
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
    """Decorator that registers a function as a shipped law; its arguments are fields of `Law`."""

    def enter(function: Function) -> Function:
        """Registers the function under its name, and returns it unchanged."""
        LAWS[function.__name__] = replace(
            describe(function), returns=returns, space=space, loss_fn=loss_fn, start=start, aliases=aliases,
            derived=derived or {},
        )  # fmt: skip
        return function

    return enter


def from_file(name: str) -> Law:
    """Returns the law that a function in a Python file defines; the function computes the predicted loss.

    name  FILE.py:FUNCTION

    Raises ValueError for a missing file, a file that cannot be imported, and a missing function.
    """
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"law {name!r}: the file {path!r} does not exist; the form is FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"law {name!r}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    form = vars(module).get(function)
    if not callable(form):
        functions = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        names = ", ".join(functions) or "none"
        raise ValueError(f"law {name!r}: {path} has no function {function!r}; its functions are {names}")
    return as_law(form)


def from_extension(name: str) -> Law:
    """Returns the law that a function in a package of the reader defines. Raises ValueError for any other name.

    name  dotted, such as mylab.laws.saturating
    """
    return replace(as_law(import_function(name, f"law {name}")), name=name)


def as_law(function: Function) -> Law:
    """Returns the law of a function: as `@law(..)` registered it, since that holds more than the signature, or else
    as its signature describes it. Raises ValueError for a function that is no law.
    """
    registered = [entry for entry in LAWS.values() if entry.function is function]
    return registered[0] if registered else describe(function)
