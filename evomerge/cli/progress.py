"""The progress display on standard error: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evomerge.study.record import Evaluation

PLAIN_SECONDS = 30.0
"""The least number of seconds between two lines of a phase, where there is no terminal."""


class ProgressDisplay:
    """A campaign's `Listener`: phase, count, best, rate, failures, time left."""

    def __init__(self, console: Console) -> None:
        """Show nothing yet; `console` should write to standard error."""
        self._console = console
        self._live = console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._done = self._at_start = self._total = self._failed = self._pruned = 0
        self._best: float | None = None
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
        self._best, self._failed, self._pruned = None, 0, 0
        self._console.print(title, markup=False, highlight=False)

    def phase(self, name: str, done: int, total: int) -> None:
        """Begin a phase; the best of the search stays on show."""
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
        measured = not evaluation.estimated
        if evaluation.optimizers_own and measured and evaluation.value is not None:
            values = (evaluation.value, self._best)
            self._best = max(value for value in values if value is not None)
        if self._task is not None:
            self._bar.update(self._task, completed=self._done, facts=self._facts())
        due = time.monotonic() - self._printed > PLAIN_SECONDS or self._done == self._total
        if not self._live and due:
            self._printed = time.monotonic()
            self._console.print(f"{self._phase}: {self._done} of {self._total}  {self._facts()}")

    def said(self, message: str) -> None:
        """Print a message as a line of its own."""
        self._console.print(message, markup=False, highlight=False)

    def _facts(self) -> str:
        rate = (self._done - self._at_start) / max(1e-9, time.monotonic() - self._started)
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        facts = [speed]
        if self._best is not None:
            facts.insert(0, f"best so far {self._best:.4f}")
        if self._pruned:
            facts.append(f"{self._pruned} pruned")
        if self._failed:
            facts.append(f"{self._failed} failed")
        return "  ".join(facts)
