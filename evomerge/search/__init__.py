"""Proposing recipes: spaces (genes, decode) and optimizers (ask and tell).

As `evomerge.search` is also the public function that runs a campaign, this module can be called:
see `evomerge.python.search.search`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that runs a campaign when it is called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run a campaign; the arguments are those of `evomerge.python.search.search`."""
        return importlib.import_module("evomerge.python").search(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
