"""What is merged: checkpoints opened lazily, their layout, tokenizers, checks.

`layout` is plain data and imports no torch; `source`, `checkpoint`, `vocabulary`, `tokenizer` and
`check_models` do, so they are imported from their own modules, by those who need weights.
"""

from evomerge.models.layout import GROUPS, MODULES, Layout, TensorSpec, derive_layout

__all__ = ["GROUPS", "MODULES", "Layout", "TensorSpec", "derive_layout"]
