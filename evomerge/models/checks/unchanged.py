"""Notice weight files that are overwritten, truncated or deleted while a campaign runs.

Weights are memory-mapped: other bytes in the same file would be merged without a word, and a file
that has become shorter kills whoever reads past its end. So the files' sizes, times and inodes are
looked at before and after every candidate; that takes microseconds a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge.common.errors import StoppedError
from evomerge.models.source import Source

_WEIGHTS = ("*.safetensors", "*.bin")

FileState = tuple[int, int, int]
"""Size in bytes, time of the last change in ns, inode."""


def weight_files(folders: Iterable[Path]) -> dict[Path, FileState]:
    """Map every weight file of models' folders to its state now."""
    found: dict[Path, FileState] = {}
    for folder in dict.fromkeys(folders):
        for pattern in _WEIGHTS:
            for path in sorted(folder.glob(pattern)):
                state = _state(path)
                if state is not None:
                    found[path] = state
    return found


def calibration_files(sources: Mapping[str, Source]) -> dict[Path, FileState]:
    """Map every calibration file of the models to its state now."""
    paths = [source.calibration.path for source in sources.values() if source.calibration]
    states = {path: _state(path) for path in paths}
    return {path: state for path, state in states.items() if state is not None}


def check_unchanged(files: Mapping[Path, FileState]) -> None:
    """Refuse to go on with weight files that have changed.

    Raises:
        StoppedError: names the first file, what changed, and the way out.
    """
    for path, before in files.items():
        now = _state(path)
        if now == before:
            continue
        if now is None:
            what = "is gone"
        elif now[0] != before[0]:
            what = f"has {now[0]} bytes instead of {before[0]}"
        else:
            what = "was written again"
        raise StoppedError(
            f"{path}: {what}, while the campaign ran. Scores of two models must not be mixed: put "
            "the file back and run the same command again, or begin anew with another --out"
        )


def _state(path: Path) -> FileState | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
