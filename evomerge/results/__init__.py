"""The meaning of a study's records: status, the winner, the population, ancestry, cost and pace."""

from evomerge.results.results import REFERENCES, Results, shown_split

__all__ = ["REFERENCES", "Results", "shown_split"]
