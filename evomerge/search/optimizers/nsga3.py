"""NSGA-III: a front of trade-offs in three objectives or more, spread along directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evomerge.search.optimizers.base import optimizer
from evomerge.search.optimizers.nsga2 import Nsga2
from evomerge.search.optimizers.parts.reference_points import associate, directions, normalise


@optimizer("nsga3")
class Nsga3(Nsga2):
    """NSGA-III, steady-state: NSGA-II with reference directions for crowding (Deb & Jain 2014).

    As many Das-Dennis directions as the population can bear. Of the worst front goes the member
    farthest from its direction, in the niche with the most members. Parents are drawn uniformly,
    except that the less violated of two wins (Jain & Deb 2014, the constrained tournament).
    """

    @override
    def _superfluous(self, objectives: NDArray[np.float64], ranks: NDArray[np.int64]) -> int:
        # 1. normalise losses, find each member's nearest direction (Deb & Jain 2014, alg. 2 and 3)
        losses = normalise(-objectives, ranks == 0)
        rays = directions(objectives.shape[1], self._population)
        niche, distance = associate(losses, rays)
        # 2. of the worst front, those in the niche with the most members
        worst = np.flatnonzero(ranks == ranks.max())
        crowd = np.bincount(niche, minlength=len(rays))[niche[worst]]
        candidates = worst[crowd == crowd.max()]
        candidates = candidates[niche[candidates] == niche[candidates[0]]]
        # 3. of these the member farthest from its direction
        return int(candidates[np.argmax(distance[candidates])])

    @override
    def _preference(
        self,
        objectives: NDArray[np.float64],
        violations: NDArray[np.float64],
        ranks: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Compare by violation alone; of two equals the first drawn wins."""
        return np.column_stack([violations, np.zeros_like(violations)])
