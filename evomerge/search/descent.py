"""Gradient descent on a genome: Adam within the unit cube, and the documents of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evomerge.study.record import Descend, DescentRecord

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WIDEST = 3.0
"""A gene varies at most so many times as much, or as little, as the median of all."""
ALL_STEPS = "all steps were made"
FOLLOWED = 64
"""Most genes whose way is kept for figures."""
AVERAGE = 0.33
"""Share of the steps of small batches, the last ones, whose mean is the end: they lead around the
best point."""
OTHERS = 3
"""Fewest descents that another one is compared with."""
_DESCENT = 0xDE5CE27
"""Keys the randomness of descents, apart from the optimizer's."""


def batch_for(items: int) -> int:
    """Return how many documents a step takes where so many items are searched on, 4 to 12: a
    twentieth of them. Small fresh batches lead farther for the same items (docs/benchmarks.md).
    """
    return min(12, max(4, items // 20))


def small_batch_for(items: int) -> int:
    """Return how many documents a step takes where the end is a mean over steps, 1 to 6: a fortieth
    of those that are searched on (docs/benchmarks.md).
    """
    return min(6, max(1, items // 40))


def begin(origin: str, genome: NDArray[np.float64], asked: Descend | None = None) -> DescentRecord:
    """Return a descent before its first step; `asked`: by a proposal."""
    zeros, start = [0.0] * len(genome), genome.tolist()
    return DescentRecord(origin, start, zeros, zeros, start, start=start, asked=asked)


def pulled(
    record: DescentRecord, gradient: NDArray[np.float64], asked: Descend
) -> NDArray[np.float64]:
    """Add to a gradient, (dimension,), that of the pull to the start: `pull` · mean of |x − x₀|, or
    of (x − x₀)² (Expert Merging, arXiv:2509.25712, has the first).
    """
    if not asked.pull or not len(gradient):
        return gradient
    away = np.array(record.genome) - np.array(record.start)
    slope = np.sign(away) if asked.norm == "l1" else 2 * away
    return gradient + asked.pull * slope / len(away)


def stepped(record: DescentRecord, gradient: NDArray[np.float64], rate: float) -> DescentRecord:
    """Make one step of projected Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

    Args:
        gradient: dL/d entry of the genome, (dimension,).
        rate: of a step, as a share of a gene's range.
    """
    step = record.step + 1
    # 1. moments of the gradient, corrected for their beginning at zero
    mean = BETAS[0] * np.array(record.mean) + (1 - BETAS[0]) * gradient
    square = BETAS[1] * np.array(record.square) + (1 - BETAS[1]) * gradient**2
    direction = mean / (1 - BETAS[0] ** step)
    size = np.sqrt(square / (1 - BETAS[1] ** step)) + EPSILON
    # 2. the step, brought back into the bounds
    genome = np.clip(np.array(record.genome) - rate * direction / size, 0.0, 1.0)
    return replace(
        record,
        step=step,
        genome=genome.tolist(),
        mean=mean.tolist(),
        square=square.tolist(),
    )


def with_slopes(record: DescentRecord, gradient: NDArray[np.float64]) -> DescentRecord:
    """Add a step's gradient, seen at the record's genome, to the sums of `slopes`."""
    x = np.array(record.genome)
    seen = [np.ones(1), x, gradient, x * gradient, x**2]
    before = record.slopes or [[0.0] * len(one) for one in seen]
    sums = [(np.array(old) + new).tolist() for old, new in zip(before, seen, strict=True)]
    return replace(record, slopes=sums)


def with_tail(record: DescentRecord, asked: Descend) -> DescentRecord:
    """Add the genome to the sum of those of the last steps, once these have begun."""
    if record.step <= asked.steps - asked.averaged:
        return record
    before = record.tail or [0.0] * len(record.genome)
    return replace(record, tail=(np.array(before) + record.genome).tolist())


def mean_of_tail(record: DescentRecord, asked: Descend) -> list[float]:
    """Return the mean genome of the last steps (Polyak & Juditsky 1992), (dimension,): steps on few
    documents lead around the best point, and their mean lies nearer to it than the last.
    """
    return [value / asked.averaged for value in record.tail]


def scales(record: DescentRecord) -> NDArray[np.float64] | None:
    """How far each gene may vary around a descent's end, relative to the others, (dimension,).

    vᵢ^(−1/4), of Adam's second moment v: the square root of Adam's own preconditioner. Gradients of
    mini-batches are large along genes of which the loss is sure, which a search must vary little.
    Divided by the median, kept within a factor of `WIDEST` of it, and brought to a geometric mean
    of 1, so that the volume stays; genes without a gradient have 1. None where none had any.
    """
    square = np.array(record.square)
    moved = square > 0
    if not moved.any():
        return None
    found = np.ones(len(square))
    own = square[moved] ** -0.25
    own = np.clip(own / np.median(own), 1 / WIDEST, WIDEST)
    found[moved] = own / np.exp(np.log(own).mean())
    return found


def looked(record: DescentRecord, loss: float, steps: int, patience: int) -> DescentRecord:
    """Take in the loss of the documents held back; the descent ends after `steps`, or when
    `patience` looks in a row brought nothing better.
    """
    checks = [*record.checks, [record.step, loss]]
    trail = [[round(value, 4) for value in record.genome]] if len(record.genome) <= FOLLOWED else []
    record = replace(record, checks=checks, trail=[*record.trail, *trail])
    if loss <= min(value for _, value in checks):
        record = replace(record, best=record.genome, best_step=record.step)
    since = sum(step > record.best_step for step, _ in checks)
    if record.step >= steps:
        return replace(record, done=ALL_STEPS)
    return replace(record, done="nothing better was found") if since >= patience else record


def finished(record: DescentRecord) -> DescentRecord:
    """Return what is worth keeping of a descent that ended."""
    return replace(record, genome=[], mean=[], square=[])


def is_behind(record: DescentRecord, others: Sequence[DescentRecord]) -> bool:
    """Tell whether a descent leads nowhere, as the others show: the median rule (Golovin et al.
    2017, Vizier, section 3.2.2), of losses after equal steps.

    It does if, half way or later, its best loss held back so far is above the median of those that
    the others had seen by as many steps: bad starts overtake before. Only descents of the same loss
    on the same documents count, of which there must be three.
    """
    if record.asked is None or not record.checked or 2 * record.step < record.asked.steps:
        return False
    alike = [one for one in others if one.asked and _measure(one.asked) == _measure(record.asked)]
    rivals = [least for one in alike if (least := _least(one, record.step)) is not None]
    ours = _least(record, record.step)
    return ours is not None and len(rivals) >= OTHERS and ours > float(np.median(rivals))


def _measure(asked: Descend) -> tuple[object, ...]:
    """What must be the same in two descents for their losses held back to be comparable."""
    return asked.task, asked.share if asked.task else None, asked.held_back, asked.batch


def _least(record: DescentRecord, step: int) -> float | None:
    """The least loss held back by a step; None if it was not looked at so late."""
    seen = [loss for at, loss in record.checks if at <= step]
    return min(seen) if seen and record.checks[-1][0] >= step else None


class Batches:
    """The documents of a descent: fresh ones for every step, and those held back.

    Each task gives as many. Its documents are gone through in an order of their own, drawn anew
    when they are through; a step's are a function of seed and step alone.

    Attributes:
        held: task → ids of the documents held back.
    """

    def __init__(
        self,
        items: Mapping[str, Sequence[str]],
        batch: int,
        held_back: float,
        seed: Sequence[int],
        order: Sequence[int] | None = None,
    ) -> None:
        """Set documents apart.

        Args:
            items: task → ids of the search split.
            batch: documents of a step, over all tasks.
            held_back: share of a task's documents that is held back, of all tasks at most two
                batches; 0: none.
            seed: whole numbers that key the choice of those held back.
            order: whole numbers that key the steps' order; `seed` where not given.
        """
        self._seed = _keys(seed)
        self._each = max(1, batch // len(items))
        self.held: dict[str, list[str]] = {}
        self._left: dict[str, list[str]] = {}
        for number, (task, ids) in enumerate(items.items()):
            places = self._order(number, 0, len(ids))
            count = min(max(1, round(held_back * len(ids))), math.ceil(2 * batch / len(items)))
            count = count if held_back else 0
            self.held[task] = [ids[place] for place in places[:count]]
            # where there is one document, it must do for both
            self._left[task] = [ids[place] for place in places[count:]] or list(ids)
        self._seed = self._seed if order is None else _keys(order)

    def at(self, step: int) -> dict[str, list[str]]:
        """Return task → ids of the documents of a step, from 0."""
        found = {}
        for number, (task, ids) in enumerate(self._left.items()):
            each = min(self._each, len(ids))
            places = range(step * each, (step + 1) * each)
            orders = {
                p // len(ids): self._order(number, 1 + p // len(ids), len(ids)) for p in places
            }
            taken = (orders[p // len(ids)][p % len(ids)] for p in places)
            found[task] = [ids[place] for place in dict.fromkeys(taken)]
        return found

    def _order(self, task: int, time: int, count: int) -> list[int]:
        key = np.random.SeedSequence([*self._seed, task, time])
        return [int(place) for place in np.random.default_rng(key).permutation(count)]


def _keys(seed: Sequence[int]) -> list[int]:
    return [_DESCENT, *(value & 0xFFFFFFFFFFFFFFFF for value in seed)]
