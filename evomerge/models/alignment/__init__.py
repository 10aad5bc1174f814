"""Permute an expert's rows into the base's order before they are merged."""

from evomerge.models.alignment.git_rebasin import Aligned, Alignment, align

__all__ = ["Aligned", "Alignment", "align"]
