"""Studies with invented scores, to be looked at."""

from invented_runs import extensible, finished, losing, midway

__all__ = ["extensible", "finished", "losing", "midway"]
