"""The progress display: a live bar in a terminal or a notebook with widgets, else plain lines."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text
from typing_extensions import override

from evomerge.study.record import Evaluation

PLAIN_SECONDS = 30.0
"""The least number of seconds between two lines of a phase, where there is no terminal."""

WIDE = 120
"""Columns of a terminal that has room for bars and rates too."""
_SHOWN = {
    "search": "best so far",
    "finalist": "best so far",
    "polished": "best so far",
    "parent": "best parent",
}
"""Role of an evaluation → what its best is shown as."""


class _Time(ProgressColumn):
    """Time left of a phase; time taken once it is over."""

    def __init__(self, left: str) -> None:
        """`left`: written after the time that is left."""
        super().__init__()
        self._left = left

    @override
    def render(self, task: Task) -> Text:
        seconds = task.finished_time if task.finished else task.time_remaining
        if seconds is None:
            return Text("")
        return Text(f"{timedelta(seconds=round(seconds))}{'' if task.finished else self._left}")


class ProgressDisplay:
    """A campaign's `Listener`: phase, count, best merge and parent, rate, failures, time left."""

    def __init__(self, console: Console) -> None:
        """Show nothing yet; `console` should write to standard error."""
        self._console = console
        self._live = console.is_terminal or (console.is_jupyter and _has_widgets())
        self._wide = console.width >= WIDE
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *([BarColumn(10)] if self._wide else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            _Time(" left" if self._wide else ""),
            console=console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._done = self._at_start = self._total = self._failed = self._pruned = 0
        self._best: dict[tuple[str, str], float] = {}
        self._split = ""
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, title: str) -> None:
        """Begin one of several runs: print a line for it, remove the bars of the one before."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._best, self._failed, self._pruned = {}, 0, 0
        self._console.print(title, markup=False, highlight=False)

    def on_record(self, evaluations: Iterable[Evaluation]) -> None:
        """Take in the bests of earlier runs."""
        for evaluation in evaluations:
            self._take_in(evaluation)

    def phase(self, name: str, done: int, total: int) -> None:
        """Begin a phase; its bar shows the best on its own split, and counts its own failures."""
        self._split, self._failed, self._pruned = "", 0, 0
        self._phase, self._done, self._total = name, done, max(done, total)
        self._at_start, self._started = done, time.monotonic()
        self._task = self._bar.add_task(name, total=self._total, completed=done, facts="")
        if done == total:
            self._bar.update(self._task, facts="on record")
        if not self._live:
            self._console.print(f"{name}: {done} of {total} on record")
            self._printed = time.monotonic()

    def recorded(self, evaluation: Evaluation) -> None:
        """Count one more evaluation of the phase."""
        self._done += 1
        self._failed += evaluation.failed
        self._pruned += evaluation.estimated
        self._split = evaluation.split
        self._take_in(evaluation)
        if self._task is not None:
            self._bar.update(self._task, completed=self._done, facts=self._facts())
        due = time.monotonic() - self._printed > PLAIN_SECONDS or self._done == self._total
        if not self._live and due:
            self._printed = time.monotonic()
            self._console.print(f"{self._phase}: {self._done} of {self._total}  {self._facts()}")

    def said(self, message: str) -> None:
        """Print a message as a line of its own."""
        self._console.print(message, markup=False, highlight=False)

    def _take_in(self, evaluation: Evaluation) -> None:
        who = _SHOWN.get(evaluation.role)
        if who and not evaluation.estimated and evaluation.value is not None:
            key = (evaluation.split, who)
            self._best[key] = max(evaluation.value, self._best.get(key, evaluation.value))

    def _facts(self) -> str:
        rate = (self._done - self._at_start) / max(1e-9, time.monotonic() - self._started)
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        found = [
            f"{who} {self._best[self._split, who]:.4f}"
            for who in dict.fromkeys(_SHOWN.values())
            if (self._split, who) in self._best
        ]
        facts = [", ".join(found)] if found else []
        if self._wide or not self._live:
            facts.append(speed)
        if self._pruned:
            facts.append(f"{self._pruned} pruned")
        if self._failed:
            facts.append(f"{self._failed} failed")
        return "  ".join(facts)


def _has_widgets() -> bool:
    """True where a notebook can show a bar that moves: ipywidgets is installed."""
    return importlib.util.find_spec("ipywidgets") is not None
