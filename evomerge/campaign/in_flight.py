"""What is in flight, each with a marker in the study, so that the driver's death leaves a trace."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import count

from evomerge.campaign.candidate import Candidate
from evomerge.common.errors import EvomergeError
from evomerge.search.optimizers import Proposal
from evomerge.study.record import Marker
from evomerge.study.study import Study

ATTEMPTS = 3
"""How often a candidate may take its worker or the driver down before it is retired."""

Key = tuple[str, str, int | None]
"""Digest, split and ask index, which tells two candidates with one recipe apart."""


class InFlight:
    """Candidates in flight by ticket, and what was in flight when the last driver stopped.

    A candidate whose recipe is in flight already waits beside it, for the same result.

    Attributes:
        flying: ticket → candidate.
        waiting: ticket → candidate, of those that wait for another's result.
    """

    def __init__(self, study: Study, *, isolated: bool) -> None:
        """`apart`: no candidate can be to blame for the driver's death."""
        self.flying: dict[int, Candidate] = {}
        self.waiting: dict[int, Candidate] = {}
        self._study = study
        self._isolated = isolated
        self._left = {(m.digest, m.split, m.ask): m for m in study.markers()}
        self._taken: set[int | None] = {marker.slot for marker in self._left.values()}

    def __len__(self) -> int:
        """How many results are awaited."""
        return len(self.flying) + len(self.waiting)

    def left_over(self) -> list[Proposal]:
        """What the last driver had asked for and not recorded, in the order of the asks."""
        found = [
            Proposal(marker.ask, marker.tells or 0, marker.genome, marker.parents)
            for marker in self._left.values()
            if marker.ask is not None and marker.genome is not None
        ]
        return sorted(found, key=lambda proposal: proposal.ask)

    def again(self, candidate: Candidate) -> Candidate:
        """The candidate, with the attempts that earlier drivers made on it."""
        marker = self._left.get(_key(candidate))
        if marker is None:
            return candidate
        attempt = min(marker.attempt + (not marker.blameless), ATTEMPTS)
        climb = candidate.climb and (marker.climb or candidate.climb)
        return replace(candidate, attempt=attempt, ticket=marker.slot, climb=climb)

    def start(self, candidate: Candidate) -> int:
        """Mark a candidate before its work begins; its ticket.

        The driver's death is laid on it where both are one process: not with workers apart, and not
        at a last attempt, which is made apart. So whoever kills the driver retires no candidate.
        """
        ticket = self._mark(candidate, self._isolated or candidate.attempt == ATTEMPTS)
        self.flying[ticket] = candidate
        return ticket

    def is_flying(self, candidate: Candidate) -> bool:
        """Whether another with the same recipe is being measured on the same split."""
        return any(one.key == candidate.key for one in self.flying.values())

    def wait_beside(self, candidate: Candidate) -> None:
        """Let a candidate wait for the one that is flying with its recipe."""
        self.waiting[self._mark(candidate, blameless=True)] = candidate

    def land(self, ticket: int) -> Candidate:
        """A candidate whose work has ended; it keeps its ticket, until it is settled."""
        return replace(self.flying.pop(ticket), ticket=ticket)

    def settle(self, candidate: Candidate) -> list[Candidate]:
        """A candidate is on record; those that waited for its result, to be started now."""
        self._taken.discard(candidate.ticket)
        waited = [ticket for ticket, one in self.waiting.items() if one.key == candidate.key]
        return [replace(self.waiting.pop(ticket), ticket=ticket) for ticket in waited]

    def excuse(self) -> None:
        """The driver stops in order: what is in flight keeps its attempts."""
        for ticket, candidate in self.flying.items():
            with suppress(EvomergeError):
                self._mark(replace(candidate, ticket=ticket), blameless=True)

    def _mark(self, candidate: Candidate, blameless: bool) -> int:
        """Write the marker in the candidate's slot, or in the first that holds none that counts."""
        ticket = candidate.ticket
        if ticket is None:
            ticket = next(slot for slot in count() if slot not in self._taken)
        proposal = candidate.proposal
        self._taken.add(ticket)
        self._study.mark(
            Marker(
                slot=ticket,
                digest=candidate.recipe.digest,
                split=candidate.split,
                attempt=candidate.attempt,
                ask=proposal.ask if proposal else None,
                tells=proposal.tells if proposal else None,
                genome=proposal.genome if proposal else None,
                parents=proposal.parents if proposal else (),
                climb=candidate.climb,
                blameless=blameless,
            )
        )
        return ticket


def _key(candidate: Candidate) -> Key:
    return (*candidate.key, candidate.proposal.ask if candidate.proposal else None)
