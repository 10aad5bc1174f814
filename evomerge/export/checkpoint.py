"""A recipe as a folder that `AutoModelForCausalLM.from_pretrained` loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError

from evomerge.config import DtypeConfig
from evomerge.errors import InputError
from evomerge.export.lineage import recipe_text
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import is_straight, plan
from evomerge.materialize.stream import SHARD_BYTES, write_weights
from evomerge.models.depth import config_of_path
from evomerge.models.preflight import Preflight
from evomerge.recipe import BASE, Recipe

_COMPANIONS = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken"})
_INDEX = ".index.json"
_OWN = ("config.json", "recipe.json", "evomerge.json")
_OF_TRAINING = ("trainer_state.json",)


def export_checkpoint(
    recipe: Recipe,
    models: Preflight,
    dtype: DtypeConfig,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    texts: Mapping[str, str] = MappingProxyType({}),
    tokenizer: str = BASE,
    trust_remote_code: bool = False,
) -> Path:
    """Write weights, config, tokenizer, generation settings and `recipe.json` into a new folder.

    The folder appears whole or not at all: it is written beside its place and renamed. Tokenizer,
    chat template and generation config are the files of the source called `tokenizer`, code the
    base's where that is trusted. `texts` are further files, name → content, instead of those.

    Raises:
        InputError: the folder exists and is not empty, cannot be written, the disk has not the
            room, the recipe was made from other weights, or no standard checkpoint can say its path
            or scales.
        NonFiniteError: a merged tensor is not finite.
    """
    folder = check_free(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        kernel = Kernel(models.sources, dtype.weights)
        _write_config(recipe, models, kernel, partial, trust_remote_code)
        write_weights(recipe, models.layout, kernel, partial, shard_bytes)
        _copy_companions(models.sources[tokenizer].folder, partial, _COMPANIONS)
        if trust_remote_code:
            _copy_companions(models.sources[BASE].folder, partial, {".py"})
        for name, text in {"recipe.json": recipe_text(recipe), **texts}.items():
            (partial / name).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:  # the latter when the disk fills up after all
        raise InputError(f"{folder}: cannot be written ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def check_free(folder: Path) -> Path:
    """Where a checkpoint will be written, absolute.

    Raises:
        InputError: the folder exists and is not empty.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; choose another --to")
    return folder


def _write_config(
    recipe: Recipe, models: Preflight, kernel: Kernel, folder: Path, trust_remote_code: bool
) -> None:
    """The base's config with the path's layers and the dtype of the merged weights."""
    plan(recipe, models.layout, models.sources)  # says better than the config what is wrong
    base = models.sources[BASE]
    config = base.config_to_save()
    if not is_straight(recipe, models.layout):
        if base.beside():
            raise InputError(
                "path: layers of a language tower keep their order and number, since the rest of "
                f"the model in {base.folder} is built around it"
            )
        layers = [slot.layer for slot in recipe.path]
        config = config_of_path(config, layers, trust_remote_code=trust_remote_code)
        config.architectures = [models.layout.architecture]
    config.dtype = kernel.dtype(models.layout.tensors[0].name)
    config.save_pretrained(folder)


def _copy_companions(source: Path, folder: Path, kinds: Set[str]) -> None:
    """Every small file of these suffixes beside the source's weights that we do not write, but
    for what a training run leaves there.
    """
    for path in sorted(source.iterdir()):
        ours = path.name in (*_OWN, *_OF_TRAINING) or path.name.endswith(_INDEX)
        if path.is_file() and path.suffix in kinds and not ours:
            shutil.copyfile(path, folder / path.name)
