"""Spaces of layer sequences, one file each, found by their names in campaign files."""

from evomerge.search.spaces.paths.base import MERGED, Layer, LayerPaths, build_paths, path_kinds

__all__ = ["MERGED", "Layer", "LayerPaths", "build_paths", "path_kinds"]
