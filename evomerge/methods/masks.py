"""Random masks without a generator: whether an entry is kept depends on where it lies, only.

The bit for one entry is a hash of (seed, tensor name, expert name, index), so a mask needs no
storage and is the same in search, on every worker, in any slicing, and in the export. The hash is
Wang-style mixing of 32-bit integers with the constants of Wellons' `lowbias32` (bias 0.17 of the
ideal), applied twice with two keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.methods.registry import Tensor


@dataclass(frozen=True)
class At:
    """Where a slice lies: the recipe's seed, the tensor's name, its experts, its first index."""

    seed: int
    tensor: str
    experts: Sequence[str]
    start: int = 0

    def keep(self, expert: int, like: Tensor, density: float) -> Tensor:
        """Bernoulli(density) for each entry of a slice.

        Args:
            expert: index of the expert whose mask it is.
            like: a tensor of the slice's shape, on its device.
            density: probability of keeping, in [0, 1]; resolution 2⁻³².

        Returns:
            bool tensor of `like`'s shape.
        """
        import torch

        words = _key(self.seed, self.tensor, self.experts[expert])
        stop = self.start + like.numel()
        index = torch.arange(self.start, stop, dtype=torch.int64, device=like.device)
        low = index.to(torch.int32)  # wraps: entries beyond 2³² differ in the high word
        if stop > 1 << 32:
            low = low ^ _mix((index >> 32).to(torch.int32))
        bits = _mix(_mix(low ^ words[0]) ^ words[1])
        threshold = round(density * (1 << 32)) - (1 << 31)  # bits are signed: uniform in ±2³¹
        if threshold >= 1 << 31:
            return torch.ones_like(like, dtype=torch.bool)
        return (bits < threshold).view(like.shape)


def _key(*parts: int | str) -> tuple[int, int]:
    """Two signed 32-bit words from a stable hash of the parts."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return (
        int.from_bytes(digest[:4], "little", signed=True),
        int.from_bytes(digest[4:], "little", signed=True),
    )


def _mix(x: Tensor) -> Tensor:
    """`lowbias32` on int32 entries; int32 products wrap as uint32 ones do."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)
