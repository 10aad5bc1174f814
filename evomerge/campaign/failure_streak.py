"""Tells failures in a row apart: the candidates' own, or of a metric or server that broke.

The base model decides. It could be scored when the campaign began; it is scored again, on the items
that failed last, once several candidates in a row have failed, and at the end of every phase whose
last candidates failed. If it can be scored still, the failures are the candidates' own. If not, the
failures that are no candidate's fault are withdrawn, so that they are tried again, and the run
stops.
"""

from __future__ import annotations

import re

from evomerge.campaign.candidate import Candidate
from evomerge.campaign.recorder import Recorder
from evomerge.common.errors import EvomergeError, StoppedError
from evomerge.recipe import BASE
from evomerge.study.record import Evaluation

IN_A_ROW = 3
"""Failures in a row after which the base model is scored again."""
MOST = 24
"""The number above doubles each time that the base could be scored, up to this: a space of which
most candidates fail by themselves costs few evaluations of the base."""
CHECK = "check"
"""The role of the base model as a candidate that is scored again; it is not recorded."""

_VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{12,}|\d+")
"""Parts of a reason that differ between equal failures: addresses, digests, numbers."""


class FailureStreak:
    """The failures since the last evaluation that succeeded.

    Attributes:
        candidate: the one that failed last in this run; None once the base has been scored since.
    """

    def __init__(self, record: Recorder) -> None:
        """Take over the failures with which the record ends."""
        self.candidate: Candidate | None = None
        self._record = record
        self._failed: list[Evaluation] = []
        self._allowed = IN_A_ROW
        self._checking = False
        for evaluation in record.study.evaluations():
            self._failed = [*self._failed, evaluation] if evaluation.failed else []

    def succeeded(self) -> None:
        """Begin anew: a candidate was scored."""
        self.candidate, self._failed = None, []

    def failed(self, candidate: Candidate) -> Candidate | None:
        """Count a failed candidate, which is on record; return the check, if one is due now."""
        self.candidate = candidate
        self._failed.append(self._record.known[candidate.key])
        return self.check() if len(self._failed) >= self._allowed else None

    def check(self) -> Candidate | None:
        """Return the base model as a candidate, on the items that failed last.

        None where nothing failed since the last check, where one is under way, or where the base
        has not been scored on that split: it is about to be.
        """
        last = self.candidate
        if last is None or self._checking:
            return None
        base = self._record.setup.space.parents()[BASE]
        if (base.digest, last.split) not in self._record.known:
            return None
        self._checking = True
        return Candidate(base, last.split, CHECK, BASE, progress=last.progress)

    def cleared(self) -> None:
        """Lay the failures on the candidates: the base could be scored."""
        self._checking = False
        self._allowed = min(MOST, 2 * self._allowed)
        self.succeeded()

    def stop(self, reason: str) -> EvomergeError:
        """Withdraw what failed through no fault of its own; return the error to raise.

        Withdrawn are the failures of the streak, and whatever failed for the base's own reason
        before. A base that has never been scored leaves nothing to go on with.
        """
        record = self._record
        base = record.setup.space.parents()[BASE]
        if (base.digest, "search") not in record.known:
            return EvomergeError(f"the base model itself cannot be scored: {reason}")
        first = min((e.number or 0 for e in self._failed), default=0)
        keys = {(e.digest, e.split) for e in self._failed}
        found = [
            e
            for e in record.study.evaluations()
            if e.reason is not None
            and (
                ((e.digest, e.split) in keys and (e.number or 0) >= first)
                or _kind(e.reason) == _kind(reason)
            )
        ]
        record.study.withdraw(found)
        tried = f"; the {len(found)} evaluations that failed so are tried again" if found else ""
        return StoppedError(
            f"the base model, which was scored before, cannot be scored any more: {reason}. This "
            f"is no candidate's fault: mend what scores them, and run the same command again{tried}"
        )


def _kind(reason: str) -> str:
    return _VARYING.sub("#", reason)
