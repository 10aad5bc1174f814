"""Calibration files of a campaign's models (`models.statistics`): found and opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.common.errors import InputError, ModelNotFoundError
from evomerge.models.checkpoint import Checkpoint, find_statistics_on_hub
from evomerge.models.files.calibration_file import open_calibration

NAMES = ("calibration.safetensors", "exp_avg_sq.safetensors")
"""What the file is called in a folder that holds several."""


def attach_calibrations(opened: Mapping[str, Checkpoint], statistics: Mapping[str, str]) -> None:
    """Open the models' calibration files; their tensors are mapped, none is read.

    Args:
        opened: source name → model.
        statistics: source name → a file, a folder with one, or a hub id with an optional
            `@revision`.

    Raises:
        InputError: there is no such file, or it is something else; names the key.
    """
    for name, spec in statistics.items():
        try:
            opened[name].calibrate_with(open_calibration(find_calibration(spec)))
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"models.statistics.{name}: {error}") from None
        except InputError as error:
            raise InputError(f"models.statistics.{name}: {error}") from None


def is_gone(spec: str) -> bool:
    """Tell whether a file of which a spec is the path is no longer there."""
    path = Path(spec)
    return (path.is_absolute() or path.suffix == ".safetensors") and not path.exists()


def find_calibration(spec: str) -> Path:
    """Return the file of a spec.

    Raises:
        InputError: there is none, or there are several.
    """
    path = Path(spec)
    if path.is_file() or path.suffix == ".safetensors":
        return path
    folder = path if path.is_dir() else find_statistics_on_hub(spec)
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise InputError(
            f"{spec}: {len(found)} safetensors files, and none is called {NAMES[0]}; name the file"
        )
    return found[0]
