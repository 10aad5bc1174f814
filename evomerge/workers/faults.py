"""Tells faults apart: a machine's, a device's, or (all others) the candidate's own."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator

MACHINE = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),  # a disk that is full or read-only
        *(errno.EIO, errno.ENXIO, errno.ENODEV),  # one that is broken or gone
        *(errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),  # one elsewhere
        *(errno.EMFILE, errno.ENFILE),
    }
)
"""Numbers of the system's errors that no merge can bring about."""

_IN_RUST = re.compile(r"\(os error (\d+)\)")
"""Such an error as safetensors and tokenizers name it in exceptions of their own."""


def is_machine_fault(error: BaseException) -> bool:
    """Say whether the machine failed (a full disk, a share that is gone), not the candidate."""
    return any(number in MACHINE for one in _chain(error) for number in _numbers(one))


def is_device_fault(error: BaseException) -> bool:
    """Say whether an accelerator failed, after which its process cannot use it again."""
    torch = sys.modules.get("torch")  # without it there is no device
    return torch is not None and any(
        isinstance(one, getattr(torch, "AcceleratorError", ())) for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and those that it was raised from or within."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _numbers(error: BaseException) -> Iterator[int]:
    if isinstance(error, OSError) and error.errno is not None:
        yield error.errno
    yield from map(int, _IN_RUST.findall(str(error)))
