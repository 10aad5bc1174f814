"""Studies with invented scores, to be looked at."""

from invented_runs import extensible, finished, midway

__all__ = ["extensible", "finished", "midway"]
