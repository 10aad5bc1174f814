"""Random masks without a generator: whether an entry is kept depends on where it lies, only.

The bit for one entry is a hash of (seed, tensor name, expert name, index), so a mask needs no
storage and is the same in search, on every worker, in any slicing, and in the export. The hash is
Wang-style mixing of 32-bit integers with the constants of Wellons' `lowbias32` (bias 0.17 of the
ideal), applied twice with two keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from evomerge.methods.core.slices import first_places, places
from evomerge.methods.core.view import Tensor


class At(NamedTuple):
    """The place of a slice, which decides its masks; made by `at`.

    Attributes:
        words: int32 (experts, 2), the keys of each expert's mask.
        first: int32 (64,), the indices of the slice's first entries; see `places`.
    """

    words: Tensor
    first: Tensor

    def starting_at(self, start: int) -> At:
        """Return the place of a later slice of the same tensor, before index 2³²."""
        return self._replace(first=first_places(start))

    def keep(self, expert: int, like: Tensor, limit: Tensor) -> Tensor:
        """Draw which entries of a slice survive, independently of each other.

        Args:
            expert: index of the expert whose mask it is.
            like: a tensor of the slice's shape, on its device.
            limit: int32 (), from `limits`; or one for every entry, of `like`'s shape.

        Returns:
            bool tensor of `like`'s shape.
        """
        index = places(like, self.first)  # modulo 2³²; `at` keeps the rest in the words
        return _mix(_mix(index ^ self.words[expert, 0]) ^ self.words[expert, 1]) <= limit


def at(seed: int, tensor: str, experts: Sequence[str], start: int = 0) -> At:
    """Make the place of a slice that begins at index `start` and crosses no multiple of 2³²."""
    import torch

    words = _words(seed, tensor, tuple(experts))
    if start >> 32:
        words = words.clone()
        words[:, 0] ^= _mix(torch.tensor(start >> 32, dtype=torch.int32))
    return At(words, first_places(start & 0xFFFFFFFF))


@lru_cache(maxsize=1 << 14)
def _words(seed: int, tensor: str, experts: tuple[str, ...]) -> Tensor:
    import torch

    keys = [_key(seed, tensor, name) for name in experts]
    return torch.tensor(keys, dtype=torch.int32).view(-1, 2)


def limits(densities: Sequence[float]) -> Tensor:
    """Return the bounds with which `At.keep` keeps entries with these probabilities in [0, 1].

    Returns:
        int32 (len(densities),); resolution 2⁻³², and 2⁻³² instead of 0.
    """
    import torch

    places = [round(density * (1 << 32)) - 1 for density in densities]
    return torch.tensor([max(place, 0) - (1 << 31) for place in places], dtype=torch.int32)


def _key(*parts: int | str) -> tuple[int, int]:
    """Make two signed 32-bit words of a stable hash of the parts."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return (
        int.from_bytes(digest[:4], "little", signed=True),
        int.from_bytes(digest[4:], "little", signed=True),
    )


def _mix(x: Tensor) -> Tensor:
    """Apply `lowbias32` to int32 entries; int32 products wrap as uint32 ones do."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)
