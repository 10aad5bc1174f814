"""Special functions from scipy's compiled modules, without the package around them.

`import scipy.special` takes .15 to .3 s of processor time, all but .01 of it to support arrays of
other libraries, which is a third of what `evomerge status` takes.
"""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import suppress
from types import ModuleType

import scipy


def _compiled() -> ModuleType:
    """Load `scipy.special._ufuncs`: the functions that `scipy.special` hands on.

    The package is imported as always where it is loaded already, where other threads might import
    it meanwhile, and where this scipy keeps the functions elsewhere.
    """
    name = "scipy.special"
    if name not in sys.modules and threading.active_count() == 1:
        package = ModuleType(name)
        package.__path__ = [f"{scipy.__path__[0]}/special"]
        sys.modules[name] = package
        try:
            with suppress(ImportError):
                return importlib.import_module(f"{name}._ufuncs")
        finally:
            del sys.modules[name]
    return importlib.import_module(name)


_functions = _compiled()
bdtr, betainc, betaincinv = _functions.bdtr, _functions.betainc, _functions.betaincinv
ndtr, ndtri, stdtrit = _functions.ndtr, _functions.ndtri, _functions.stdtrit
