"""Calibration files of a model alone, and of a campaign's models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.campaign.calibration_needs import check_crossed, needed_kinds
from evomerge.campaign.calibration_split import CalibrationSplit
from evomerge.campaign.setup import deal_items
from evomerge.common.errors import InputError
from evomerge.config import CampaignConfig
from evomerge.fitness.calibration.calibrate import Calibration, calibrate
from evomerge.fitness.calibration.texts import read_texts, sample
from evomerge.fitness.tasks.task_set import list_audit, list_items
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.methods.core.calibration_in_recipes import CROSS
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.files.calibration_file import KINDS
from evomerge.models.messages import campaign_key
from evomerge.models.open_models import open_model, open_models
from evomerge.models.tokens.matching import as_unmatched
from evomerge.recipe import BASE
from evomerge.workers.devices import cores, device_of, own_device


def calibrate_model(
    model: str,
    documents: Path,
    kinds: Sequence[str],
    target: Path,
    *,
    samples: int,
    tokens: int,
    trust_remote_code: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the calibration file of one model.

    Args:
        model: a folder or hub id.
        documents: a file of texts.
        kinds: of `calibration_file.KINDS`.
        target: the file to write.
        samples: how many of the texts are read.
        tokens: at which each is cut off.
        told: is told of progress.

    Raises:
        InputError: model, texts or kinds cannot be used, or the file cannot be written.
    """
    check_kinds(kinds)
    if CROSS in kinds:
        raise InputError(
            "--kinds cross: is of several models together; calibrate their campaign, evomerge "
            "calibrate CAMPAIGN.yaml"
        )
    texts = sample(read_texts("--on", documents), samples)
    source = open_model(model, trust_remote_code=trust_remote_code)
    asked = Calibration(model, texts, kinds, tokens, cores(), own_device())
    return calibrate(source, asked, target, trust_remote_code=trust_remote_code, told=told)


@dataclass(frozen=True)
class Planned:
    """A calibration file of a campaign before it is made.

    Attributes:
        name: the model's.
        source: the model, aligned where `models.align` says so, with its own tokens.
        asked: texts and kinds.
        target: the file.
        tokenizer: the folder of the tokenizer that its texts are read with.
    """

    name: str
    source: Checkpoint
    asked: Calibration
    target: Path
    tokenizer: Path


def plan_calibration(
    config: CampaignConfig,
    *,
    only: str | None = None,
    kinds: Sequence[str] | None = None,
    folder: Path | None = None,
) -> list[Planned]:
    """Find what to calibrate for a campaign, and on which texts.

    Args:
        only: the name of one model; by default those that the methods need.
        kinds: of `calibration_file.KINDS`; by default those that the methods need.
        folder: for the files; by default `calibration.folder`.

    Raises:
        InputError: nothing needs data, there are no texts, or a model or a text cannot be used.
    """
    wanted = _wanted(config, only, kinds)
    if config.calibration is None:
        raise InputError(
            "calibration: the campaign says no texts; write calibration: {documents: texts.jsonl}, "
            "or give them with --on"
        )
    # 1. the texts, which stand in no other split
    tasks = list_items(config.fitness)
    split = CalibrationSplit(config, tasks)
    items, _ = deal_items(tasks, config, split.aside)
    texts = split.texts(items, list_audit(config.fitness))
    for name in wanted:
        if name not in texts:
            raise InputError(
                f"calibration: no texts for {name}; write per_expert: {{{name}: {{documents: "
                "FILE}}, or documents for all models"
            )
    # 2. the models, aligned ones in the base's order, with their own vocabularies
    models = with_recipes_made(config.models).model_copy(update={"statistics": {}})
    opened = open_models(models)
    crossed = [name for name, own in wanted.items() if CROSS in own]
    if crossed:
        check_crossed(config, crossed, texts)
    together = [as_unmatched(opened[name]) for name in models.experts]
    found = []
    for name, own in wanted.items():
        source = as_unmatched(opened[name])
        reader = source if models.tokenizer else opened[BASE]
        asked = Calibration(
            name=campaign_key(name),
            texts=texts[name],
            kinds=own,
            tokens=config.calibration.tokens,
            threads=cores(),
            device=device_of(config),
            together=together if name in crossed else (),
        )
        target = _target(config, name, folder)
        found.append(Planned(name, source, asked, target, reader.tokenizer_folder))
    return found


def calibrate_campaign(
    config: CampaignConfig,
    *,
    only: str | None = None,
    kinds: Sequence[str] | None = None,
    folder: Path | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write the calibration files of a campaign's models.

    Args:
        only: as `plan_calibration` takes it, like `kinds` and `folder`.
        kinds: see there.
        folder: see there.
        told: is told of progress.

    Returns:
        the files, in the models' order.

    Raises:
        InputError: as `plan_calibration`, or a file cannot be written.
    """
    written = []
    for one in plan_calibration(config, only=only, kinds=kinds, folder=folder):
        what = f"{', '.join(one.asked.kinds)} of {len(one.asked.texts)} texts"
        told(f"{one.name}: {what}, into {one.target}")
        trusted = config.models.trust_remote_code
        calibrate(
            one.source,
            one.asked,
            one.target,
            tokenizer=one.tokenizer,
            trust_remote_code=trusted,
            told=told,
        )
        written.append(one.target)
    return written


def _target(config: CampaignConfig, name: str, folder: Path | None) -> Path:
    """Return a model's file: where the campaign looks for it, unless a folder is given."""
    said = config.models.statistics.get(name, "")
    if folder is None and said.endswith(".safetensors"):
        return Path(said)
    assert config.calibration is not None
    return (folder or Path(config.calibration.folder)) / f"{name}.safetensors"


def _wanted(
    config: CampaignConfig, only: str | None, kinds: Sequence[str] | None
) -> dict[str, Sequence[str]]:
    """Model → kinds to take of it.

    Raises:
        InputError: there are none, or no such model or kind.
    """
    models = ["base", *config.models.experts]
    if only is not None and only not in models:
        raise InputError(f"--source {only}: no such model; the models are {', '.join(models)}")
    needed = needed_kinds(config)
    if kinds is not None:
        check_kinds(kinds)
        names = [only] if only is not None else [*needed] or [*config.models.experts]
        needed = dict.fromkeys(names, kinds)
    found = {name: own for name, own in needed.items() if only in (None, name)}
    if not found:
        raise InputError(
            f"{'no method of this campaign' if only is None else f'--source {only}: no method'} "
            "needs data; name what to take with --kinds"
        )
    return found


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse kinds of statistics that there are not.

    Raises:
        InputError: names the kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                f"--kinds {kind}: no such statistic; there are {', '.join(KINDS)}, written with "
                "commas between them"
            )
    if not kinds:
        raise InputError(f"--kinds: name some of {', '.join(KINDS)}")
