"""Run a resident model's forward passes: packed rows, and the steps of a generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import get_layer_types_and_kwargs

from evomerge.fitness.inference.batch import Batch
from evomerge.fitness.inference.kv_cache import RowsCache
from evomerge.fitness.inference.self_check import agrees

WORTH = 2
"""Entries of the attention, for each hidden number, that cost what a token's other work does."""


class Forward:
    """Runs a causal language model whose weights, and whose layers, change between calls.

    Packs with branches need a model that takes masks and positions of ours, and one that keeps
    keys and values by position. Whether it does is seen from its config, and tried out once.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._agrees: bool | None = None

    @property
    def worth(self) -> float:
        """Entries of the attention that cost what a token's other work does; for `pack_rows`."""
        return WORTH * float(getattr(self.config, "hidden_size", 1024))

    def packs(self) -> bool:
        """Say whether rows may share their beginnings, and a generation may keep a cache.

        The first call with finite weights compares packed rows and cached steps with plain rows;
        of a model without weights the config decides.
        """
        if self.device.type == "meta":
            return self._windows() is not None
        if self._agrees is None and self._windows() is not None:
            self._agrees = agrees(self)
        return bool(self._agrees) and self._windows() is not None

    @torch.inference_mode()
    def logits(
        self, batch: Batch, rows: Tensor, places: Tensor, cache: DynamicCache | None = None
    ) -> Tensor:
        """Compute logits at the chosen (row, place) pairs only, [pairs, vocabulary].

        Args:
            batch: what is read.
            rows: int64 [pairs], packs of the batch.
            places: int64 [pairs], places in them.
            cache: an empty one, to be filled with the keys and values of all places.
        """
        return self._logits(batch, rows, places, cache)

    @torch.enable_grad()
    def differentiable_logits(self, batch: Batch, rows: Tensor, places: Tensor) -> Tensor:
        """As `logits`, with the graph that a backward pass needs."""
        return self._logits(batch, rows, places, None)

    def _logits(
        self, batch: Batch, rows: Tensor, places: Tensor, cache: DynamicCache | None
    ) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": batch.tokens.to(self.device).long()}
        if batch.branches:
            inputs["position_ids"] = batch.depths.to(self.device).long()
            inputs["attention_mask"] = self._masks(batch)
        if cache is not None:
            inputs["past_key_values"] = cache
        with _head_narrowed(self.model, (rows, places)) as narrowed:
            logits = self.model(**inputs, use_cache=cache is not None).logits
        return logits[0] if narrowed else logits[_beside(logits, (rows, places))]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], live: Sequence[bool], cache: RowsCache) -> Tensor:
        """Compute logits after one more token of every row, [rows, vocabulary]; extends the cache.

        A row that is not live any more stays at its position, which may be the model's last.

        Args:
            tokens: one of each row.
            live: whether a row's answer goes on, for each row.
            cache: keys and values of the rows so far.
        """
        going = torch.tensor(live, device=cache.mask.device)[:, None]
        cache.mask = torch.cat([cache.mask, going], dim=1)
        return self.model(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            attention_mask=cache.mask,
            position_ids=cache.mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]

    @property
    def config(self) -> Any:
        """The config of the language model."""
        return self.model.config.get_text_config(decoder=True)

    def _windows(self) -> Mapping[str, int | None] | None:
        """Kind of layer → its attention window, None where it sees all.

        None if the model takes no masks from outside, or keeps something else than keys and values.
        """
        own = getattr(self.model, "_supports_attention_backend", False)
        if not own or self.config._attn_implementation not in ("sdpa", "eager"):
            return None
        kinds, settings = get_layer_types_and_kwargs(self.config)
        windows = {
            kind: setting.get("sliding_window")
            for kind, setting in zip(kinds, settings, strict=True)
        }
        return windows if windows.keys() <= {"full_attention", "sliding_attention"} else None

    def _masks(self, batch: Batch) -> Any:
        """Masks, [packs, 1, queries, keys], true where a token is seen; by kind of layer if two."""
        windows = self._windows()
        assert windows is not None
        # 1. A token is seen from its place on, to the end of its branch.
        depths, ends = batch.depths.to(self.device), batch.ends.to(self.device)
        places = torch.arange(ends.shape[1], device=self.device)
        seen = (places <= places[:, None]) & (places[:, None] < ends[:, None])
        # 2. A window counts positions in the row, not places in the pack.
        masks = {}
        for kind, window in windows.items():
            near = (
                seen if window is None else seen & (depths[:, :, None] < depths[:, None] + window)
            )
            masks[kind] = self._as_taken(near[:, None])
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _as_taken(self, mask: Tensor) -> Tensor:
        """A mask as booleans, or for the eager attention as what is added to its scores."""
        if self.config._attn_implementation == "sdpa":
            return mask
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
            ~mask, torch.finfo(dtype).min
        )


@contextmanager
def outputs_of(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect a module's outputs inside the block; of several, the first."""
    found: list[Tensor] = []

    def keep(_: torch.nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _head_narrowed(model: Any, pairs: tuple[Tensor, Tensor]) -> Iterator[list[bool]]:
    """Let the output head see the chosen (row, position) pairs only, as [1, pairs, hidden].

    Yields a list that is non-empty once the head was narrowed; it stays empty where a model has
    no output module, or computes its logits around it. Narrowing before the head leaves in force
    whatever a model does to its logits afterwards, such as soft-capping.
    """
    narrowed: list[bool] = []

    def narrow(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not inputs:
            return None
        narrowed.append(True)
        return inputs[0][_beside(inputs[0], pairs)].unsqueeze(0), *inputs[1:]

    head = model.get_output_embeddings()
    if head is None:
        yield narrowed
        return
    handle = head.register_forward_pre_hook(narrow)
    try:
        yield narrowed
    finally:
        handle.remove()


def _beside(tensor: Tensor, pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Move indices to the tensor's device: a model may end on another than it begins on."""
    return pairs[0].to(tensor.device), pairs[1].to(tensor.device)
