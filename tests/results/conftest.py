"""Studies with invented scores, to be looked at."""

from invented_runs import _few_resamples, extensible, finished, midway

__all__ = ["_few_resamples", "extensible", "finished", "midway"]
