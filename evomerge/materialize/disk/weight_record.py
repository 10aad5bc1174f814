"""The record of a model's weights, in a few bytes a tensor, and the difference of two.

Exports have one, and a study has one of the weights that it scored, for its finalists.

Digests say whether a tensor is the same to the bit. Where it is not, its sums say by how much: each
is Σᵢ sᵢxᵢ over a part of the tensor with fixed random signs s, so that for two tensors the squared
difference of their sums has the squared norm of their difference as its mean (Alon, Matias &
Szegedy 1996). With `SUMS` of them the root mean square is known to some 13 %, whatever the
difference looks like: one entry or all.
"""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from evomerge.common.digest import content_digest
from evomerge.common.version import __version__
from evomerge.config import Strict
from evomerge.methods import find_method
from evomerge.models.checkpoint import tensor_digest
from evomerge.models.files.page_release import release
from evomerge.models.files.shards import read_stored
from evomerge.recipe import Recipe

Part = Callable[[], Iterable[tuple[str, Tensor]]]
"""Gives some of a model's tensors, by their names in a checkpoint."""
SUMS = 31
"""Number of sums of a tensor."""
_LENGTH = 1 << 15
"""Entries of a block that go into one sum; another length is another file format."""


class TensorRecord(Strict):
    """The record of one tensor.

    Attributes:
        sha256: over dtype, shape and bytes.
        sums: float32, little-endian, base64.
    """

    sha256: str
    sums: str

    def decoded(self) -> np.ndarray:
        """Return the sums, float64 [SUMS]."""
        return np.frombuffer(base64.b64decode(self.sums), "<f4").astype(np.float64)


class WeightsRecord(Strict):
    """The weights of a checkpoint, or of a model in memory, and what they were made with.

    Attributes:
        digest: over all tensors, however they are dealt to files.
        evomerge, torch: versions.
        cpu: its instruction set as torch uses it.
        processor: its model; None where that is not known.
        device: `cpu`, or the GPU's name.
        statistics: statistics of the sources were read from a run's folder.
        methods: merge method → the version of its arithmetic (`Method.version`); 1 of others.
        rounded_to: the dtype to which tensors were rounded before; None: they are as stored.
    """

    digest: str
    evomerge: str
    torch: str
    cpu: str
    processor: str | None = None
    device: str = "cpu"
    statistics: bool
    methods: dict[str, int] = Field(default_factory=dict)
    rounded_to: str | None = None
    tensors: dict[str, TensorRecord]


@dataclass(frozen=True)
class Difference:
    """The difference between the weights of two checkpoints.

    Attributes:
        tensors: names of those that are not the same to the bit, in either.
        of: how many tensors there are.
        largest: root mean square of the largest difference, as a share of that of its tensor; an
            estimate (see this module). NaN where nothing can be compared.
        where: the tensor of that difference.
    """

    tensors: tuple[str, ...]
    of: int
    largest: float
    where: str


def record_weights(
    folder: Path,
    recipe: Recipe,
    *,
    statistics: bool,
    only: Container[str] | None = None,
    rounded_to: str | None = None,
    known: Mapping[str, TensorRecord] = MappingProxyType({}),
) -> WeightsRecord:
    """Read the weights of a recipe's checkpoint once and record them.

    Args:
        statistics: statistics of the sources were read from a run's folder.
        only: names of the tensors to record; all, unless given.
        rounded_to: a dtype to round them to first.
        known: the records of some tensors, which are not read.
    """
    stored = read_stored(folder, allow_pickle=False)
    names = [name for name in stored if only is None or name in only]
    parts = [partial(_stored, name, stored[name].tensor) for name in names if name not in known]
    found = _records(parts, rounded_to)
    tensors = {name: known[name] if name in known else found[name] for name in names}
    return _recorded(recipe, tensors, statistics=statistics, rounded_to=rounded_to)


def _stored(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, tensor
    release([tensor])


def record_of(
    recipe: Recipe,
    parts: Iterable[Part],
    *,
    statistics: bool,
    device: str = "cpu",
    rounded_to: str | None = None,
) -> WeightsRecord:
    """Record the weights that were made of a recipe.

    Args:
        parts: give the tensors, some at a time; each is called once, by one of several
            threads, and what it gives is held until it is recorded.
        device: where they were made.
    """
    tensors = _records(parts, rounded_to)
    return _recorded(recipe, tensors, statistics=statistics, device=device, rounded_to=rounded_to)


def _records(parts: Iterable[Part], rounded_to: str | None) -> dict[str, TensorRecord]:
    """Record the tensors that some parts of a model give, on several threads."""

    def record(part: Part) -> dict[str, TensorRecord]:
        found = {}
        for name, tensor in part():
            dtype = getattr(torch, rounded_to) if rounded_to else tensor.dtype
            found[name] = record_tensor(tensor.to("cpu", dtype))
        return found

    tensors: dict[str, TensorRecord] = {}
    with ThreadPoolExecutor() as pool:
        for found in pool.map(record, parts):
            tensors |= found
    return tensors


def _recorded(
    recipe: Recipe,
    tensors: Mapping[str, TensorRecord],
    *,
    statistics: bool,
    device: str = "cpu",
    rounded_to: str | None = None,
) -> WeightsRecord:
    """Return the record of a model with these tensors, made here."""
    names = sorted({merge.method for merge in recipe.merges})
    return WeightsRecord(
        digest=content_digest({name: one.sha256 for name, one in tensors.items()}),
        evomerge=__version__,
        torch=str(torch.__version__),
        cpu=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        processor=_processor(),
        device=device,
        statistics=statistics,
        methods={name: find_method(name, "recipe").version for name in names},
        rounded_to=rounded_to,
        tensors=dict(tensors),
    )


@cache
def _processor() -> str | None:
    """The CPU's model, which with its instruction set decides how BLAS and LAPACK round."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, None) or platform.processor() or None


def difference(ours: WeightsRecord, theirs: WeightsRecord, folder: Path) -> Difference | None:
    """Compare our weights, which lie in `folder`, with a record's; None if they are equal."""
    if ours.digest == theirs.digest:
        return None
    names = [*ours.tensors, *(name for name in theirs.tensors if name not in ours.tensors)]
    differing = tuple(n for n in names if _digest(ours, n) != _digest(theirs, n))
    shares = dict(_shares(ours.tensors, theirs.tensors, differing, folder))
    where = max(shares, key=lambda name: shares[name], default="")
    return Difference(differing, len(names), shares.get(where, math.nan), where)


def _digest(record: WeightsRecord, name: str) -> str | None:
    return record.tensors[name].sha256 if name in record.tensors else None


def _shares(
    ours: Mapping[str, TensorRecord],
    theirs: Mapping[str, TensorRecord],
    names: tuple[str, ...],
    folder: Path,
) -> Iterator[tuple[str, float]]:
    """Yield for each tensor that both have the norm of the difference over the norm of ours."""
    stored = read_stored(folder, allow_pickle=False)
    for name in names:
        if name in ours and name in theirs:
            distance = float(np.linalg.norm(ours[name].decoded() - theirs[name].decoded()))
            norm = float(torch.linalg.vector_norm(stored[name].tensor, dtype=torch.float64))
            yield name, distance / norm if norm else math.inf


def record_tensor(tensor: Tensor) -> TensorRecord:
    """Record one tensor, on the CPU."""
    sums = signed_sums(tensor).numpy().astype("<f4")
    return TensorRecord(
        sha256=tensor_digest(tensor), sums=base64.b64encode(sums.tobytes()).decode("ascii")
    )


def signed_sums(tensor: Tensor) -> Tensor:
    """Return float64 [SUMS]: entries with random signs, each added to one of the sums.

    A block of the tensor has `SUMS` parts, one for each sum. Every block has the same signs, and
    each of its parts one more sign of its own.
    """
    signs, total = _signs(), torch.zeros(SUMS, dtype=torch.float64)
    for number, block in enumerate(tensor.reshape(-1).split(SUMS * _LENGTH)):
        # pad the block, the last one may be short, and cut it into parts
        width = math.ceil(block.numel() / SUMS)
        lack = SUMS * width - block.numel()
        padded = torch.nn.functional.pad(block, (0, lack)) if lack else block
        # Σ sᵢxᵢ over each part, times the part's own sign
        parts = torch.linalg.vecdot(padded.view(SUMS, width).float(), signs[:, :width])
        total += parts.double() * _random_signs(1 + number, SUMS)
    return total


@cache
def _signs() -> Tensor:
    return _random_signs(0, SUMS * _LENGTH).view(SUMS, _LENGTH).float()


def _random_signs(key: int, count: int) -> Tensor:
    """Return ±1, float64 [count]: bits of Philox, which are the same everywhere and for good."""
    raw = np.random.Philox(key=key).random_raw(math.ceil(count / 64)).astype("<u8")
    bits = np.unpackbits(raw.view(np.uint8))[:count]
    return torch.from_numpy(2.0 * bits - 1.0)
