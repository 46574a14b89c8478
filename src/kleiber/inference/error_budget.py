"""One error budget for a stream of tests whose number and order nobody chose beforehand.

Each test gets a share of what is left, so that the errors of all tests, however many there are, sum to the budget.
`stream` bounds the probability of any false discovery by this sum. `keep` bounds the expected share of false
discoveries (LOND: Javanmard and Montanari 2018, doi:10.1214/17-AOS1559): after D discoveries a test has D + 1 times its
share. Both need a test that keeps its level given all that came before, as one on runs that nothing else has used does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ErrorKind = Literal["keep", "stream"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("keep", "stream")
TESTED = 0.075  # share of the horizon over which most of the budget is spent: few proposals get as far as a test
FEWEST = 5  # tests over which it is spent at the earliest
LARGEST_ERROR = 0.3  # of one test


@dataclass(frozen=True)
class ErrorBudget:
    """What is left of an error budget.

    kind     keep or stream
    error    of the whole stream: 1 - level
    horizon  number of proposals that are planned
    tests    number of tests so far
    kept     number of discoveries so far
    """

    kind: ErrorKind
    error: float
    horizon: int
    tests: int = 0
    kept: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ERROR_KINDS:
            raise ValueError(f"error={self.kind} must be one of {', '.join(ERROR_KINDS)}")
        if not 0 < self.error < 1:
            raise ValueError(f"the error {self.error} of a stream must be between 0 and 1")
        if self.horizon < 1:
            raise ValueError(f"horizon={self.horizon} must be >= 1")

    @property
    def share(self) -> float:
        """The share of what is left that the next test gets."""
        return 1 / max(FEWEST, TESTED * self.horizon)

    @property
    def left(self) -> float:
        """The error that is left."""
        return self.error * (1 - self.share) ** self.tests

    @property
    def spent(self) -> float:
        """The error that the tests so far have spent."""
        return self.error - self.left

    @property
    def next_error(self) -> float:
        """The error of the next test: the chance that it keeps what is no better."""
        bonus = self.kept + 1 if self.kind == "keep" else 1
        return min(LARGEST_ERROR, self.left * self.share * bonus)

    def after(self, kept: bool) -> ErrorBudget:
        """Returns the budget after one more test."""
        return ErrorBudget(self.kind, self.error, self.horizon, self.tests + 1, self.kept + kept)
