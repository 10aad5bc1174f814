"""Constraints: bounds on what a merge may lose against a parent, on the same items."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.common.errors import EvomergeError, InputError
from evomerge.common.plugins import nearest
from evomerge.config import ConstraintConfig

Values = NDArray[np.float64]
Items = Mapping[str, Values]
"""Task → metric value per item."""

BEST_PARENT = "best_parent"


@dataclass(frozen=True)
class Check:
    """One constraint measured on one recipe: it holds while `measured` ≤ `limit`."""

    label: str
    measured: float
    limit: float

    @property
    def violation(self) -> float:
        """The excess of `measured` over `limit`; 0 while the constraint holds."""
        return max(0.0, self.measured - self.limit)


@dataclass(frozen=True)
class Constraints:
    """The campaign's constraints over its tasks.

    Attributes:
        configs: as the campaign file gives them.
        signs: task → +1 where a larger metric is better, −1 where a smaller one is.
        beside: measures of weight 0, which count as flips only where a constraint names them.
        corpora: tasks with a score of the whole corpus, in which no document is right or wrong.
    """

    configs: Sequence[ConstraintConfig]
    signs: Mapping[str, float]
    beside: Collection[str] = ()
    corpora: Collection[str] = ()

    def check(self, tasks: Sequence[str], parents: Sequence[str]) -> None:
        """Check that the tasks and models exist that constraints name, and can be compared so.

        Raises:
            InputError: one does not; names the key and the nearest that does. Or flips are to be
                counted of a corpus score.
        """
        for place, config in enumerate(self.configs):
            where = f"fitness.constraints.{place}.{config.kind}"
            model, key = config.model
            known = [*parents, BEST_PARENT] if config.not_below else parents
            if model not in known:
                raise InputError(f"{where}.{key}: no model {model!r}; {nearest(model, known)}")
            if config.task is not None and config.task not in tasks:
                raise InputError(
                    f"{where}.task: no task {config.task!r}; {nearest(config.task, tasks)}"
                )
            counted = [config.task] if config.task else self._scored
            if config.negative_flips is not None and set(counted) <= set(self.corpora):
                raise InputError(
                    f"{where}: {', '.join(counted)} is scored over the whole corpus, so there are "
                    "no documents on which a merge is worse; use not_below, or another metric"
                )

    @property
    def _scored(self) -> list[str]:
        return [task for task in self.signs if task not in self.beside]

    def measure(self, items: Items, parents: Mapping[str, Items]) -> list[Check]:
        """Measure every constraint on a recipe's items, against the parents' on the same items.

        Raises:
            EvomergeError: a parent that a constraint names could not be scored.
        """
        return [self._measure(config, items, parents) for config in self.configs]

    def _measure(
        self, config: ConstraintConfig, items: Items, parents: Mapping[str, Items]
    ) -> Check:
        model, _ = config.model
        if model != BEST_PARENT and model not in parents:
            raise EvomergeError(
                f"fitness.constraints: {model!r}, which a constraint names, could not be scored"
            )
        if config.not_below is not None:
            return self._loss(config.not_below.task, model, config.not_below.by, items, parents)
        assert config.negative_flips is not None
        tasks = [config.task] if config.task else self._scored
        tasks = [task for task in tasks if task not in self.corpora]
        flips = self._flips(tasks, items, parents[model])
        label = f"negative flips against {model}" + (f" on {config.task}" if config.task else "")
        return Check(label, flips, config.negative_flips.at_most)

    def _flips(self, tasks: Sequence[str], items: Items, reference: Items) -> float:
        """The share of items at which a recipe is worse than the reference.

        Of a metric that is 0 or 1: which the reference had right and the recipe wrong (Echterhoff
        et al. 2024, MUSCLE, negative flip rate).
        """
        worse = [self.signs[task] * (items[task] - reference[task]) < 0 for task in tasks]
        return float(np.concatenate(worse).mean())

    def _loss(
        self, task: str, model: str, by: float, items: Items, parents: Mapping[str, Items]
    ) -> Check:
        """A task's mean below a parent's, or below the best parent's."""
        sign = self.signs[task]
        against = list(parents.values()) if model == BEST_PARENT else [parents[model]]
        reference = max(sign * float(np.mean(found[task])) for found in against)
        loss = reference - sign * float(np.mean(items[task]))
        return Check(f"{task} below {model.replace('_', ' ')}", loss, by)
