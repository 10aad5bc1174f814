"""Calibration files: what a model's data says of its weights, in one safetensors file.

A tensor stands under `KIND/TENSOR`, TENSOR the checkpoint's canonical name:

    fisher/TENSOR    float32, of the tensor's shape: E[g ⊙ g], the diagonal of the Fisher matrix
    gram/TENSOR      float32 (in, in): XᵀX/T of the T inputs x of a Linear
    cross/TENSOR     float32 (in, in): XᵀX̄/T, X̄ the mean of several models' inputs
    mean_abs/TENSOR  float32 (in,): the mean of |x| over them
    gtheta/TENSOR    (samples, *shape): g ⊙ θ of each sample, signed
    router/TENSOR    float32 (1 + experts, experts), of a router's weight: each expert's share of
                     the tokens' choices, and ZᵀZ/T of the logits z at T tokens
    sens/TENSOR      float64 (1,): the mean over samples of Σ |g ⊙ θ| over the tensor

Layers that read one input share what is about it: it stands under the first one's name, and
`same_input` says whose that is. A file without our metadata whose tensors have the model's own
names, as a training run's `exp_avg_sq.safetensors`, is read as `fisher`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.common.version import __version__
from evomerge.models.files.finite import NonFinite, count_non_finite
from evomerge.models.files.page_release import reading_once
from evomerge.models.files.shards import open_weights

FORMAT = "evomerge-calibration-1"
KINDS = ("fisher", "gram", "mean_abs", "gtheta", "router", "sens", "cross")
"""Kinds of statistics, by what their keys begin with."""
_OF_INPUT = ("gram", "mean_abs", "cross")
"""Kinds that are about a layer's input, which several layers may share."""
_BLOCK = 1 << 18


@dataclass(frozen=True)
class CalibrationHead:
    """What a calibration file says of itself.

    Attributes:
        source: digest of the model; empty where it is not known, as of a training run's file.
        documents: SHA-256 over the texts.
        samples: how many texts were read.
        tokens: how many tokens they have together.
        max_tokens: at which each text was cut off.
        kinds: kinds of statistics that the file holds.
        same_input: tensor → the tensor whose input it reads, too.
        evomerge: the version that wrote it.
        seed: of the sampling.
        together: digests of the models whose inputs `cross` is about, in their order.
    """

    source: str
    documents: str = ""
    samples: int = 0
    tokens: int = 0
    max_tokens: int = 0
    kinds: Sequence[str] = ()
    same_input: Mapping[str, str] = field(default_factory=dict)
    evomerge: str = __version__
    seed: int = 0
    together: Sequence[str] = ()


@dataclass(frozen=True)
class CalibrationFile:
    """An opened calibration file; its tensors are mapped, and read when they are used.

    Attributes:
        tensors: key → mapped tensor.
        norms: kind → the L2 norm over all tensors, where the file says it.
    """

    path: Path
    head: CalibrationHead
    tensors: Mapping[str, Tensor] = field(repr=False)
    norms: Mapping[str, float] = field(default_factory=dict)

    def names(self, kind: str) -> tuple[str, ...]:
        """List the tensors of which there is a statistic of this kind under their own name."""
        prefix = f"{kind}/"
        return tuple(k.removeprefix(prefix) for k in self.tensors if k.startswith(prefix))

    def read(self, kind: str, tensor: str) -> Tensor | None:
        """Return a statistic of a tensor, a mapped view; None where there is none."""
        found = self.tensors.get(f"{kind}/{tensor}")
        if found is None and kind in _OF_INPUT:
            found = self.tensors.get(f"{kind}/{self.head.same_input.get(tensor, '')}")
        return found

    def rms(self, kind: str) -> float:
        """Return the root of the mean square over all entries of a kind, whatever the threads."""
        held = [self.tensors[f"{kind}/{name}"] for name in self.names(kind)]
        count = sum(tensor.numel() for tensor in held)
        return self._norm(kind) / math.sqrt(max(count, 1))

    def _norm(self, kind: str) -> float:
        known = self._computed.get(kind, self.norms.get(kind))
        if known is None:
            held = (self.tensors[f"{kind}/{name}"] for name in self.names(kind))
            known = self._computed[kind] = norm_of(held)
        return known

    @cached_property
    def _computed(self) -> dict[str, float]:
        return {}

    @property
    def digest(self) -> str:
        """32 hex digits over head and tensors, wherever the file lies; reads all of it once."""
        return self._scanned[0]

    @property
    def non_finite(self) -> Mapping[str, NonFinite]:
        """Key → counts, of the tensors with NaN or infinity; from the same one pass."""
        return self._scanned[1]

    @cached_property
    def _scanned(self) -> tuple[str, dict[str, NonFinite]]:
        def scan(key: str) -> tuple[str, NonFinite]:
            tensor = self.tensors[key]
            digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            return digest.hexdigest(), count_non_finite(tensor)

        digests, damaged = {}, {}
        keys = sorted(self.tensors)
        with reading_once(self.tensors.values()), ThreadPoolExecutor() as pool:
            for key, (digest, found) in zip(keys, pool.map(scan, keys), strict=True):
                digests[key] = digest
                if found:
                    damaged[key] = found
        # the version that wrote it does not decide what it says
        head = {k: v for k, v in _plain(self.head).items() if k != "evomerge"}
        return content_digest({"head": head, "tensors": digests}), damaged

    def __reduce__(self) -> tuple[Any, ...]:
        return open_calibration, (self.path,)


def write_calibration(path: Path, head: CalibrationHead, tensors: Mapping[str, Tensor]) -> Path:
    """Write a calibration file, whole or not at all.

    Args:
        head: `kinds` may be left empty; it is what the keys say.
        tensors: `KIND/TENSOR` → tensor.

    Raises:
        InputError: a key is of no kind, or the file cannot be written.
    """
    kinds = sorted({key.partition("/")[0] for key in tensors})
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"{path}: no kind of statistic {kind!r}; there are {', '.join(KINDS)}")
    head = dataclasses.replace(head, kinds=tuple(kinds))
    norms = {}
    if "fisher" in kinds:
        norms["fisher"] = norm_of(t for key, t in tensors.items() if key.startswith("fisher/"))
    metadata = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in {"format": FORMAT, **_plain(head), "norms": norms}.items()
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: t.contiguous() for key, t in tensors.items()}, partial, metadata=metadata)
        _order_metadata(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error})") from None
    return path


def _order_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in the order of its keys: the library's is random."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same header in another order"
        file.seek(8)
        file.write(text.ljust(length))


def open_calibration(path: Path) -> CalibrationFile:
    """Open a calibration file, or a training run's second moments; no tensor is read.

    Raises:
        InputError: there is no such file, or it is damaged or something else; names it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; make one with evomerge calibrate")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: not a safetensors file; make one with evomerge calibrate")
    tensors = {name: stored.tensor for name, stored in open_weights(path).items()}
    metadata = _metadata(path)
    said = metadata.pop("format", None)
    if said == FORMAT:
        return _ours(path, metadata, tensors)
    if said is not None and said.startswith("evomerge"):
        raise InputError(f"{path}: written in format {said}, which this version does not read")
    if any(name.partition("/")[0] in KINDS for name in tensors):
        raise InputError(
            f"{path}: has tensors of a calibration file, but its metadata lack format: {FORMAT}"
        )
    head = CalibrationHead(source="", kinds=("fisher",), evomerge="")
    return CalibrationFile(path, head, {f"fisher/{name}": t for name, t in tensors.items()})


def norm_of(tensors: Iterator[Tensor]) -> float:
    """Compute the L2 norm of all entries, float64 and exact up to blocks, whatever the threads."""
    sums = []
    for tensor in tensors:
        for block in tensor.reshape(-1).split(_BLOCK):
            sums.append(float(np.square(block.double().numpy()).sum()))
    return math.sqrt(math.fsum(sums))


def _ours(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> CalibrationFile:
    given: dict[str, Any] = {}
    for one in dataclasses.fields(CalibrationHead):
        if one.name in metadata:
            given[one.name] = metadata[one.name]
    try:
        for name in ("samples", "tokens", "max_tokens", "seed", "kinds", "same_input", "together"):
            if name in given:
                given[name] = json.loads(given[name])
        norms = json.loads(metadata.get("norms", "{}"))
        lists = {name: tuple(given.get(name, ())) for name in ("kinds", "together")}
        head = CalibrationHead(**{**given, **lists})
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged metadata ({error}); calibrate the model again") from None
    return CalibrationFile(path, head, tensors, norms)


def _metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata, which `open_weights` has found sound."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return dict(opened.metadata() or {})


def _plain(head: CalibrationHead) -> dict[str, Any]:
    found = {**dataclasses.asdict(head), "kinds": sorted(head.kinds)}
    if not head.together:  # files of one model alone know no such key
        del found["together"]
    return found
