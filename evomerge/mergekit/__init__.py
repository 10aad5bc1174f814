"""mergekit's YAML, in and out: recipes it can express, and files of it that we can merge."""

from evomerge.mergekit.merge import MergekitMerge
from evomerge.mergekit.reader import from_mergekit, load_mergekit, load_stages, stages_from
from evomerge.mergekit.sheet import Place
from evomerge.mergekit.writer import MergekitFile, to_mergekit

__all__ = [
    "MergekitFile",
    "MergekitMerge",
    "Place",
    "from_mergekit",
    "load_mergekit",
    "load_stages",
    "stages_from",
    "to_mergekit",
]
