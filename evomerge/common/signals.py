"""Stop in order on SIGTERM, and on SIGHUP, which a terminal sends when it is closed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = [signal.SIGTERM]
if hasattr(signal, "SIGHUP"):  # there is none on Windows
    _STOPPING.append(signal.SIGHUP)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP, so that a campaign stops as on Ctrl-C.

    A SIGHUP that is ignored, as under `nohup`, stays ignored.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in _STOPPING
        if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
