"""Search spaces: genes, and the recipes that genomes decode to."""

from evomerge.search.spaces.build import build_space
from evomerge.search.spaces.genes import Condition, Domain, Gene, Genome, Value, distribution
from evomerge.search.spaces.space import Space

__all__ = [
    "Condition",
    "Domain",
    "Gene",
    "Genome",
    "Space",
    "Value",
    "build_space",
    "distribution",
]
