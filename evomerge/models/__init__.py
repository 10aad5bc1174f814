"""Open the models that are merged: checkpoints read lazily, their layout, tokenizers and checks.

The names below need no torch; `checkpoint`, `open_models`, `vocabulary` and `checks` do, so they
are imported from their own modules, by those who need weights.
"""

from evomerge.models.layout import GROUPS, MODULES, Layout, TensorSpec, derive_layout
from evomerge.models.source import Source

__all__ = ["GROUPS", "MODULES", "Layout", "Source", "TensorSpec", "derive_layout"]
