"""Give an expert's embeddings as many vocabulary rows as the base's have.

The result of a merge has the base's rows, no more and no fewer. An expert's rows beyond them are
dropped: the base has no such token. Rows that an expert lacks are the base's own, so that its task
vector is zero there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.models.layout import TensorSpec
from evomerge.models.source import Source


def with_base_rows(source: Source, base: Source, spec: TensorSpec) -> Tensor:
    """Read a source's tensor with the base's shape, `spec.shape`.

    Where the shapes agree, or the source has rows to drop, the result is a memory-mapped view that
    must not be written to. Where it lacks rows it is a new tensor of the source's dtype, or, if
    the base's dtype differs, of the narrowest one that holds both exactly.
    """
    tensor = source.read(spec.name)
    if spec.vocab_dim is None or tuple(tensor.shape) == spec.shape:
        return tensor
    rows, wanted = tensor.shape[spec.vocab_dim], spec.shape[spec.vocab_dim]
    if rows > wanted:
        return tensor.narrow(spec.vocab_dim, 0, wanted)
    own = base.read(spec.name).narrow(spec.vocab_dim, rows, wanted - rows)
    return torch.cat([tensor, own], dim=spec.vocab_dim)
