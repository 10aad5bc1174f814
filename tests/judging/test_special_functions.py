"""The special functions are scipy's own, with or without the package around them."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("bdtr", "betainc", "betaincinv", "ndtr", "ndtri", "stdtrit")


def test_they_are_scipys_and_leave_the_package_to_be_imported_later():
    code = (
        "import sys; from evomerge.judging import special_functions as ours\n"
        "assert 'scipy.special' not in sys.modules\n"
        "import scipy.special, scipy.stats\n"
        f"assert all(getattr(scipy.special, n) is getattr(ours, n) for n in {NAMES!r})\n"
        "assert scipy.special.logsumexp([0.0]) == 0 and scipy.stats.norm.cdf(0) == 0.5"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_beside_other_threads_the_package_is_imported_as_always():
    code = (
        "import sys, threading; over = threading.Event()\n"
        "threading.Thread(target=over.wait).start()\n"
        "from evomerge.judging import special_functions as ours\n"
        "over.set(); assert sys.modules['scipy.special'].ndtr is ours.ndtr"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
