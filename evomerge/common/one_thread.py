"""Run linear algebra on one thread, so that its bytes do not depend on how many there are.

LAPACK and BLAS deal work to threads by their number, add up in another order, and round otherwise:
`torch.linalg.svd` of a matrix of 16 × 32 has another Vᵀ on two threads than on one. Element-wise
arithmetic, and sums of at most 2¹⁵ entries, have the same bytes on any number of threads, and need
none of this.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()
"""One Python thread at a time: with older builds of torch MKL's setting is the process's."""

_SPINS = "3000"
"""How often a waiting thread looks before it sleeps. With the library's own 300,000 it keeps a core
for long that the very thread it waits for may need, where others use the machine."""


def let_waiting_threads_sleep() -> None:
    """Let threads of GNU's OpenMP, which torch uses on Linux, soon sleep when they wait for others.

    For this process and those that it starts, if torch is not imported yet, and the user's
    environment says nothing of it. No result depends on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch, its BLAS and its LAPACK use one thread within; afterwards as many as before.

    Holds whatever OMP_NUM_THREADS or MKL_NUM_THREADS say, and does not change what a GPU computes.
    """
    import torch

    with _LOCK:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
