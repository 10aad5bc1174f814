"""Read and write mergekit's YAML: recipes it can express, and files that evomerge can merge."""

from evomerge.mergekit.merge import MergekitMerge
from evomerge.mergekit.reader import from_mergekit, load_mergekit, load_stages, stages_from
from evomerge.mergekit.writer import MergekitFile, ModelSpec, to_mergekit

__all__ = [
    "MergekitFile",
    "MergekitMerge",
    "ModelSpec",
    "from_mergekit",
    "load_mergekit",
    "load_stages",
    "stages_from",
    "to_mergekit",
]
