"""SIGTERM and SIGHUP stop a campaign in order, as Ctrl-C does."""

from __future__ import annotations

import os
import signal

import pytest

from evomerge.common.signals import terminated_like_interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_in_order_and_its_handler_comes_back(number):
    given = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, given)


def test_under_nohup_the_terminal_may_be_closed():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated_like_interrupted():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
