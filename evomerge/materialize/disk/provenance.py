"""The provenance of a checkpoint: `recipe.json`, and `evomerge.json` with its models' places."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from evomerge.common.data_files import json_data, read_text
from evomerge.common.errors import InputError
from evomerge.common.version import __version__
from evomerge.config import DtypeConfig, FloatType, ModelsConfig, Strict
from evomerge.materialize.disk.weight_record import WeightsRecord
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.recipe import BASE, Recipe, load_recipe

RECIPE_FILE = "recipe.json"
SOURCES_FILE = "evomerge.json"


class Sources(Strict):
    """The content of `evomerge.json`: what merging `recipe.json` again needs beside it.

    The fields that are not below mean what the campaign's do. That pickles or code were trusted
    says what merging it again needs; it is no leave to trust them, see `check_trust`.

    Attributes:
        evomerge: version.
        models: source name → folder or hub id.
        statistics: source name → its calibration file, folder or hub id.
        tokenizer, chat_template: see `MergeInputs`.
        recipes: source name → provenance of the sources that are merges, for when their folders
            are gone.
        made: the record of the merged weights.
    """

    evomerge: str
    models: dict[str, str]
    statistics: dict[str, str] = Field(default_factory=dict, exclude_if=lambda given: not given)
    align: list[str] = Field(default_factory=list)
    allow_pickle: bool
    trust_remote_code: bool
    weights: Literal["checkpoint"] | FloatType
    tokenizer: str = BASE
    chat_template: str | None = None
    recipes: dict[str, Provenance] = Field(default_factory=dict)
    made: WeightsRecord | None = None

    @model_validator(mode="after")
    def _names_its_models(self) -> Sources:
        for name in (BASE, self.tokenizer, *self.recipes):
            if name not in self.models:
                raise ValueError(f"none of its models is called {name!r}")
        return self


class Provenance(Strict):
    """The `recipe.json` and `evomerge.json` of a merge among the sources."""

    recipe: dict[str, Any]
    sources: Sources

    def write(self, folder: Path) -> None:
        """Write both files as they stand beside an export."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_FILE).write_text(recipe_text(Recipe.from_json(self.recipe)), "utf-8")
        (folder / SOURCES_FILE).write_text(sources_text(self.sources), "utf-8")


@dataclass(frozen=True)
class Trust:
    """The user's leave to open files that can run code: pickles, and code beside the weights."""

    pickle: bool = False
    remote_code: bool = False


NO_TRUST = Trust()


def check_trust(sources: Sources, path: Path, trust: Trust) -> None:
    """Refuse the `evomerge.json` at `path` if its models need more trust than there is.

    Raises:
        InputError: they do; names what to allow.
    """
    wants = {
        "allow_pickle": (sources.allow_pickle, trust.pickle),
        "trust_remote_code": (sources.trust_remote_code, trust.remote_code),
    }
    for key, (wanted, given) in wants.items():
        if wanted and not given:
            raise InputError(
                f"{path}: its models were opened with {key}, which can run code that comes with "
                f"them; if you trust them, add --{key.replace('_', '-')} (evomerge merge) or set "
                f"models.{key}: true (campaign file)"
            )


@dataclass(frozen=True)
class MergeInputs:
    """The models of a recipe, and the settings of the checkpoint that is made of them.

    Attributes:
        config: the models as the user named them.
        models: the same, opened.
        dtype: the dtypes of weights and computing; merged weights are rounded to the former.
        tokenizer: the source whose tokenizer and generation settings the checkpoint has.
        chat_template: a Jinja template instead of that tokenizer's own.
        statistics: the folder of a run's statistics of the models, if the recipe is a run's.
    """

    config: ModelsConfig
    models: CheckedModels
    dtype: DtypeConfig
    tokenizer: str = BASE
    chat_template: str | None = None
    statistics: Path | None = None

    def sources(self) -> Sources:
        """Return the content of `evomerge.json`, without the record of the weights."""
        opened = self.models.sources.items()
        found = {name: provenance_of(source.folder) for name, source in opened}
        return Sources(
            evomerge=__version__,
            models={BASE: self.config.base, **self.config.experts},
            statistics=self.config.statistics,
            align=self.config.align,
            allow_pickle=self.config.allow_pickle,
            trust_remote_code=self.config.trust_remote_code,
            weights=self.dtype.weights,
            tokenizer=self.tokenizer,
            chat_template=self.chat_template,
            recipes={name: made for name, made in found.items() if made is not None},
        )


def provenance_of(folder: Path) -> Provenance | None:
    """Read the provenance of a model that evomerge exported; None for any other.

    It comes without the record of its weights: the recipe that uses it holds their digest.
    """
    if not ((folder / RECIPE_FILE).is_file() and (folder / SOURCES_FILE).is_file()):
        return None
    recipe = load_recipe(folder / RECIPE_FILE)
    sources = load_sources(folder / SOURCES_FILE).model_copy(update={"made": None})
    return Provenance(recipe=recipe.to_json(), sources=sources)


def load_sources(path: Path) -> Sources:
    """Read an export's `evomerge.json`.

    Raises:
        InputError: the file is not what evomerge writes.
    """
    try:
        return Sources.model_validate(json_data(read_text(path), str(path)))
    except ValidationError as error:
        raise InputError(f"{path}: not a file that evomerge wrote: {error}") from None


def recipe_text(recipe: Recipe) -> str:
    """Return the content of `recipe.json`."""
    return json.dumps(recipe.to_json(), indent=2) + "\n"


def sources_text(sources: Sources) -> str:
    """Return the content of `evomerge.json`."""
    return json.dumps(sources.model_dump(mode="json"), indent=2) + "\n"
