"""Packages that an installation may lack: each comes with an extra of evomerge's."""

from __future__ import annotations

import importlib.util

from evomerge.common.errors import InputError


def has(package: str) -> bool:
    """Tell whether a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def require(package: str, extra: str, who: str) -> None:
    """Refuse to go on without a package.

    Args:
        extra: the extra of `pyproject.toml` that brings it.
        who: what needs it, with which the message begins: `workers: kind ray`.

    Raises:
        InputError: it is not installed; says how to install it.
    """
    if not has(package):
        raise InputError(f"{who} needs the package {package}; {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """Say what to type for an extra."""
    return f"pip install 'evomerge[{extra}]'"
