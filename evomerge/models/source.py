"""Define what merging reads of a model: names, shapes, and tensors on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from evomerge.models.files.calibration_file import CalibrationFile


class Source(Protocol):
    """A base model or an expert, as something to read tensors from.

    Names are canonical: the `state_dict` keys of the transformers model built from `config`.
    """

    @property
    def name(self) -> str:
        """The user's name for the model: `base`, `math`."""

    @property
    def folder(self) -> Path:
        """The folder of its config, tokenizer and weights; in the hub's cache for a hub id."""

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer and the generation settings it is used with."""

    @property
    def config(self) -> PretrainedConfig:
        """The transformers config; not to be written to."""

    @property
    def digest(self) -> str:
        """32 hex digits over the weights and the config; the same wherever the model lies."""

    @property
    def calibration(self) -> CalibrationFile | None:
        """What its data says of its weights (`models.statistics`), where there is a file of it."""

    def names(self) -> tuple[str, ...]:
        """List the canonical names of the tensors, without tied duplicates, in `state_dict` order.

        A tied name may be read all the same; it gives the tensor that it shares.
        """

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of one tensor, as stored."""

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor in its stored dtype, on CPU; it must not be written to.

        It is a memory-mapped view, but for what the model stores otherwise than transformers
        computes with it: that is made anew.

        Raises:
            InputError: the model has no tensor of that name.
        """

    def mapped(self, name: str) -> Sequence[torch.Tensor]:
        """Return the memory-mapped view of a tensor, or nothing if it is made anew at every read.

        Its pages may be given back once it is read (`evomerge.models.files.page_release`).
        """

    def as_saved(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert some of a model's tensors to the names and pieces that transformers saves."""

    def beside(self) -> dict[str, torch.Tensor]:
        """Return the tensors, as saved, that no merge changes and every checkpoint needs."""
