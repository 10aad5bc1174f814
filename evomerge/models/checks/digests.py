"""Check on each machine that its models are the campaign's, reading their weights once.

A model's digest is kept beside its statistics, under the machine's name and the state of its files
(names, sizes, times); as long as these stay, the kept digest is used.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.common.remembered import write_quietly
from evomerge.models.adapter import Adapter
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.messages import campaign_key
from evomerge.models.open_models import as_stored

DIGESTS = "digests"
"""The folder of the digests, among what is kept of the models."""


def digests_of(sources: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Return model → digest, and `calibration:MODEL` → that of its calibration file."""
    files = calibration_digests(sources).items()
    own = {name: source.digest for name, source in sources.items()}
    return {**own, **{f"calibration:{name}": digest for name, digest in files}}


def calibration_digests(sources: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Return model → digest of its calibration file, of those that have one."""
    files = {name: source.calibration for name, source in sources.items()}
    return {name: file.digest for name, file in files.items() if file is not None}


def check_digests(
    sources: Mapping[str, Checkpoint], digests: Mapping[str, str], kept: Path | None
) -> None:
    """Refuse models on this machine that are not those that the driver has.

    Args:
        digests: model → the digest of the driver's.
        kept: the folder where digests are kept, if any.

    Raises:
        InputError: a model is another than the driver's; names it and its folder.
    """
    for name, source in sources.items():
        _know_digest(as_stored(source), kept)
        if source.digest != digests[name]:
            raise InputError(
                f"{campaign_key(name)}: {source.folder} on {platform.node()} holds another model "
                f"(digest {source.digest[:12]}) than the campaign's ({digests[name][:12]}); copy "
                "it there again, or set workers.copy_to"
            )
        if source.calibration and source.calibration.digest != digests[f"calibration:{name}"]:
            raise InputError(
                f"models.statistics.{name}: {source.calibration.path} on {platform.node()} is "
                "another file than the campaign's; copy it there again, or set workers.copy_to"
            )


def keep_digests(sources: Mapping[str, Checkpoint], kept: Path) -> None:
    """Keep the digests that the driver has computed, for the workers on this machine."""
    for source in map(as_stored, sources.values()):
        if not isinstance(source, Adapter):
            write_quietly(_place(kept, source), source.digest)


def _know_digest(source: Checkpoint, kept: Path | None) -> None:
    """Use the kept digest, or compute and keep it; one worker of a machine does so for all."""
    if kept is None or isinstance(source, Adapter):  # an adapter's is over little beside the base's
        return
    place = _place(kept, source)
    with _alone(place):
        known = _read(place)
        if known:
            vars(source)["digest"] = known  # as the cached property would
        else:
            write_quietly(place, source.digest)


def _place(kept: Path, source: Checkpoint) -> Path:
    files = sorted(path for path in source.folder.iterdir() if path.is_file())
    states = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    where = [platform.node(), str(source.folder.resolve()), states]
    return kept / DIGESTS / content_digest(where)


def _alone(place: Path) -> FileLock | nullcontext[None]:
    """Lock a digest's file on this machine; without a lock where nothing can be written."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return nullcontext()
    return FileLock(f"{place}.lock") if os.access(place.parent, os.W_OK) else nullcontext()


def _read(place: Path) -> str | None:
    try:
        return place.read_text(encoding="ascii") or None
    except OSError:
        return None
