"""Run linear algebra on one thread, so that its bytes do not depend on how many there are.

LAPACK and BLAS deal work to threads by their number, add up in another order, and round otherwise:
`torch.linalg.svd` of a matrix of 16 × 32 has another Vᵀ on two threads than on one. Element-wise
arithmetic, and sums of at most 2¹⁵ entries, have the same bytes on any number of threads, and need
none of this.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()
"""One Python thread at a time: with older builds of torch MKL's setting is the process's."""


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
