"""`evomerge calibrate`: the statistics that methods with data need, in a file for each model."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.shared import Override, app, exit_codes, hint, load, resumable, say, waiting
from evomerge.common.errors import InputError

LARGE = 1 << 19
"""Bytes from which on memory is given back when it is freed."""
_M_MMAP_THRESHOLD = -3
"""glibc's number of that setting, of malloc.h."""


@app.command()
def calibrate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CAMPAIGN|MODEL",
            help="A campaign file, or a model's folder or hub id.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE|FOLDER",
            help="A model's file; of a campaign, a folder for them.",
            show_default="calibration.folder",
        ),
    ] = None,
    on: Annotated[
        Path | None,
        typer.Option(
            "--on",
            metavar="FILE",
            help="Texts: JSON objects, one a line.",
            show_default="calibration",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="One model of the campaign.", show_default="all"),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,…",
            help="fisher, gram, mean_abs, gtheta, router, sens, cross.",
            show_default="what the methods need; of a model, the first three",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="How many texts are read.", show_default="256")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Where each text is cut off.", show_default="512")
    ] = None,
    overrides: Override = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Run models on texts, and write what these say of their weights: a file for each model.

    Killed at any moment, the same command goes on at the layer that it was in.
    """
    map_large_memory()
    with exit_codes(), resumable():
        asked = None if kinds is None else [kind.strip() for kind in kinds.split(",")]
        if what.endswith((".yaml", ".yml")):
            _campaign(Path(what), overrides or [], to, on, source, asked, samples, tokens)
        else:
            if source is not None or overrides:
                raise InputError("--source, --set: they are about a campaign file's models")
            _model(what, to, on, asked, samples, tokens, trust_remote_code)


def _model(
    model: str,
    to: Path | None,
    on: Path | None,
    kinds: list[str] | None,
    samples: int | None,
    tokens: int | None,
    trust_remote_code: bool,
) -> None:
    """Calibrate a model that stands alone."""
    if on is None or to is None:
        raise InputError("a model needs texts, --on FILE, and a file to write, --to FILE")
    if to.suffix != ".safetensors":
        raise InputError(f"--to {to}: name a file that ends in .safetensors")
    with waiting("loading libraries"):
        from evomerge.campaign.calibrate import calibrate_model
    written = calibrate_model(
        model,
        on,
        ["fisher", "gram", "mean_abs"] if kinds is None else kinds,
        to,
        samples=samples or 256,
        tokens=tokens or 512,
        trust_remote_code=trust_remote_code,
        told=hint,
    )
    say(written)


def _campaign(
    campaign: Path,
    overrides: list[str],
    to: Path | None,
    on: Path | None,
    source: str | None,
    kinds: list[str] | None,
    samples: int | None,
    tokens: int | None,
) -> None:
    """Calibrate the models of a campaign."""
    given = {"samples": samples, "tokens": tokens}
    if on is not None:  # for all models, in the place of the campaign's own texts
        text = f"calibration.documents={on.resolve()}"
        overrides = [*overrides, text, "calibration.task=null", "calibration.per_expert={}"]
    overrides = [
        *overrides,
        *(f"calibration.{key}={value}" for key, value in given.items() if value is not None),
    ]
    config = load(campaign, overrides)
    with waiting("loading libraries, models and tasks"):
        from evomerge.campaign.calibrate import calibrate_campaign

    for path in calibrate_campaign(config, only=source, kinds=kinds, folder=to, told=hint):
        say(path)


def map_large_memory() -> None:
    """Have malloc give large memory back to the system as soon as it is freed.

    glibc raises the size from which on it does so with what a process frees, beginning with its
    imports; weights of one layer after the other then lie about a heap that grows to the size of
    the model.
    """
    with suppress(OSError, AttributeError):  # other C libraries have no such setting
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, LARGE)
