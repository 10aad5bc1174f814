"""Check that calibration files are of the models that they are given for, and are finite."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.common.errors import InputError
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.files.calibration_file import CalibrationFile
from evomerge.models.open_models import as_stored
from evomerge.models.tokens.matching import as_unmatched


def check_calibrations(opened: Mapping[str, Checkpoint]) -> None:
    """Refuse calibration files that are of other models, or are not finite; reads them once.

    Raises:
        InputError: names the source, the file and the tensor.
    """
    for name, source in opened.items():
        if source.calibration is not None:
            try:
                _check(source, source.calibration)
            except InputError as error:
                raise InputError(f"models.statistics.{name}: {error}") from None


def _check(source: Checkpoint, file: CalibrationFile) -> None:
    # 1. whose it is
    own = as_unmatched(source)
    stored = as_stored(source)
    if stored.digest != own.digest and file.head.source in ("", stored.digest):
        raise InputError(
            f"models.align permutes {source.name!r}, whose statistics are of its own order; leave "
            "one of the two out, or make them of the aligned model: evomerge calibrate "
            "CAMPAIGN.yaml"
        )
    if file.head.source not in ("", own.digest):
        raise InputError(
            f"{file.path} is of another model (digest {file.head.source[:12]}) than {own.spec} "
            f"({own.digest[:12]}); calibrate this one: evomerge calibrate"
        )
    # 2. what it is of
    known = {*own.names(), *own.layout.tied}
    unknown = [n for kind in file.head.kinds for n in file.names(kind) if n not in known]
    if unknown:
        raise InputError(
            f"{file.path}: has statistics of a tensor {unknown[0]}, which the model lacks"
        )
    for tensor in file.names("fisher"):
        found = file.read("fisher", tensor)
        if found is not None and tuple(found.shape) != own.shape(tensor):
            raise InputError(
                f"{file.path}: the Fisher statistics of {tensor} have shape {list(found.shape)}, "
                f"the tensor {list(own.shape(tensor))}"
            )
    # 3. that it can be used
    for key, damaged in file.non_finite.items():
        kind, _, tensor = key.partition("/")
        raise InputError(
            f"{file.path}: the {kind} statistics of {source.name!r} hold {damaged} in {tensor}; "
            "calibrate the model again, in float32"
        )
