"""The one view on a model that merging needs: names, shapes, and tensors read on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig


class Source(Protocol):
    """A base model or an expert, as something to read tensors from.

    Names are canonical: the `state_dict` keys of the transformers model built from `config`.
    """

    @property
    def name(self) -> str:
        """The user's name for it: `base`, `math`."""

    @property
    def folder(self) -> Path:
        """Where its config, tokenizer and weights lie."""

    @property
    def config(self) -> PretrainedConfig:
        """The transformers config; not to be written to."""

    @property
    def digest(self) -> str:
        """32 hex digits over the weights and the config; the same wherever the model lies."""

    def names(self) -> tuple[str, ...]:
        """Canonical names of the tensors, without tied duplicates, in `state_dict` order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor, as stored."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor in its stored dtype, on CPU; a view that must not be written to."""

    def mapped(self, name: str) -> Sequence[torch.Tensor]:
        """What of a tensor is mapped from a file, whose pages may be given back once it is read."""

    def as_saved(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Some of a model's tensors under the names, and in the pieces, that transformers saves."""

    def beside(self) -> dict[str, torch.Tensor]:
        """Tensors that no merge changes and every checkpoint of the model needs, as saved."""
