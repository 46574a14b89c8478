"""The comparisons that a judge has yet to see, in order, and the file of the judgments."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from kleiber.types import Json
from kleiber_topics.judging.judgments import (
    CHOICES,
    Choice,
    Comparison,
    Judgment,
    append_judgments,
    read_judgments,
    remove_last,
)


class StaleItem(ValueError):
    """A choice is about another comparison than the one that is shown, as after a key that was pressed twice."""


class Session:
    """Shows comparisons one after another, and writes each judgment to the file at once.

    A judge goes on where they stopped: comparisons that the file already has a judgment of are not shown again. Each
    method may be called from any thread.

    path   JSONL file of judgments, of any number of judges
    judge  name of the judge
    """

    def __init__(self, comparisons: Sequence[Comparison], path: Path, judge: str) -> None:
        self.path, self.judge, self.lock = path, judge, threading.Lock()
        judged = {j.comparison.item for j in read_judgments(path) if j.judge == judge}
        self.total = len(comparisons)
        self.by_item = {comparison.item: comparison for comparison in comparisons}
        self.waiting = deque(item for item in self.by_item if item not in judged)
        self.shown = time.monotonic()
        self.finished = threading.Event()

    def state(self) -> Json:
        """What the page shows: the comparison in front, without the names of the models; item is None at the end."""
        with self.lock:
            state: Json = {
                "done": self.total - len(self.waiting),
                "total": self.total,
                "judge": self.judge,
                "item": None,
            }
            if self.waiting:
                shown = self.by_item[self.waiting[0]]
                state |= {"item": shown.item, "prompt": shown.prompt, "left": shown.left, "right": shown.right}
            return state

    def choose(self, item: int, choice: str) -> None:
        """Writes the judgment of the comparison in front, and moves on.

        Raises ValueError for another choice than CHOICES, and StaleItem for another comparison.
        """
        with self.lock:
            options: list[Choice] = [option for option in CHOICES if option == choice]
            if not options:
                raise ValueError(f"choice={choice!r} must be one of {', '.join(CHOICES)}")
            comparison = self._front(item)
            seconds = round(time.monotonic() - self.shown, 1)
            append_judgments(self.path, [Judgment(comparison, options[0], self.judge, seconds)])
            self.waiting.popleft()
            self.shown = time.monotonic()

    def skip(self, item: int) -> None:
        """Moves the comparison in front to the end. Raises StaleItem for another one."""
        with self.lock:
            self._front(item)
            self.waiting.rotate(-1)
            self.shown = time.monotonic()

    def back(self) -> None:
        """Removes this judge's last judgment from the file, and shows its comparison again, if there is one."""
        with self.lock:
            removed = remove_last(self.path, self.judge, self.by_item)
            if removed is None:
                return
            self.waiting.appendleft(removed.comparison.item)
            self.shown = time.monotonic()

    def _front(self, item: int) -> Comparison:
        if not self.waiting or self.waiting[0] != item:
            raise StaleItem(f"item={item} is not the comparison that is shown")
        return self.by_item[item]
