"""Writes a recipe as a checkpoint: a folder that `AutoModelForCausalLM.from_pretrained` loads."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from evomerge.common.errors import InputError
from evomerge.common.version import __version__
from evomerge.config import DtypeConfig
from evomerge.materialize.disk.provenance import (
    RECIPE_FILE,
    SOURCES_FILE,
    MergeInputs,
    Sources,
    recipe_text,
    sources_text,
)
from evomerge.materialize.disk.shard import sync
from evomerge.materialize.disk.stream import SHARD_BYTES, write_weights
from evomerge.materialize.disk.weight_record import TensorRecord, record_tensor, record_weights
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import keeps_layers, plan
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.materialize.statistics.store import Store
from evomerge.models.checks.checked_models import CheckedModels
from evomerge.models.layout import Layout
from evomerge.models.mixture import config_with_experts
from evomerge.models.path_config import config_of_path
from evomerge.recipe import BASE, Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_COMPANIONS = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken"})
_INDEX = ".index.json"
_MANIFEST = ".unfinished.json"
_LOCK = ".lock"
_COMPILED_ABOVE = 1 << 30
"""Parameters of a model above which one merge repays compiling, which takes ten seconds or more."""
_NOT_COPIED = ("config.json", RECIPE_FILE, SOURCES_FILE, "trainer_state.json")
"""Files that we write ourselves, or that a training run leaves."""


def write_merge(
    recipe: Recipe,
    inputs: MergeInputs,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a checkpoint with its provenance: `evomerge.json`, and the record of its weights.

    Args:
        texts: further files, name → content.

    Raises:
        InputError, NonFiniteError: see `write_checkpoint`.
    """
    template = inputs.chat_template
    return write_checkpoint(
        recipe,
        inputs.models,
        inputs.dtype,
        folder,
        shard_bytes,
        texts={**texts, **({} if template is None else {"chat_template.jinja": template})},
        tokenizer=inputs.tokenizer,
        trust_remote_code=inputs.config.trust_remote_code,
        statistics=inputs.statistics,
        sources=inputs.sources(),
    )


def write_checkpoint(
    recipe: Recipe,
    models: CheckedModels,
    dtype: DtypeConfig,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    texts: Mapping[str, str] = MappingProxyType({}),
    tokenizer: str = BASE,
    trust_remote_code: bool = False,
    statistics: Path | None = None,
    sources: Sources | None = None,
) -> Path:
    """Write weights, config, tokenizer, generation settings and `recipe.json` into a new folder.

    The folder appears whole or not at all: it is written beside its place and renamed. Shards that
    an earlier call completed before it was killed are kept, if they are of the same checkpoint.

    Args:
        texts: further files, name → content; they replace copied ones.
        tokenizer: the source whose tokenizer, chat template and generation config are copied.
        trust_remote_code: copy the base's code, too.
        statistics: the folder of a run's statistics of the models, where it comes from one.
        sources: becomes `evomerge.json`, with a record of the weights.

    Raises:
        InputError: the folder exists and is not empty, cannot be written, the disk has not the
            room, the recipe was made from other weights, or no standard checkpoint can say its path
            or scales; or another process is writing it.
        NonFiniteError: a merged tensor is not finite.
    """
    folder = check_free(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    files = {f"calibration:{name}": digest for name, digest in recipe.calibration.items()}
    store = Store(statistics, {**recipe.sources, **files}) if statistics else None
    kernel = Kernel(
        models.sources,
        dtype.weights,
        compiled=models.layout.parameters >= _COMPILED_ABOVE,
        statistics=Statistics(limit=0, store=store),
    )
    try:
        with _partial_folder(partial, _manifest(recipe, kernel, shard_bytes)):
            _write_config(recipe, models, kernel, partial, trust_remote_code)
            recorded: dict[str, TensorRecord] = {}

            def record(name: str, tensor: Tensor) -> None:
                recorded[name] = record_tensor(tensor)

            written_too = None if sources is None else record
            write_weights(recipe, models.layout, kernel, partial, shard_bytes, written_too)
            # tokenizer, chat template, generation config; code where it is trusted
            _copy_companions(models.sources[tokenizer].tokenizer_folder, partial, _COMPANIONS)
            if trust_remote_code:
                _copy_companions(models.sources[BASE].folder, partial, {".py"})
            # our own texts, and a record, for which shards of an earlier call are read
            written = {RECIPE_FILE: recipe_text(recipe), **texts}
            if sources is not None:
                has_statistics = statistics is not None
                made = record_weights(partial, recipe, statistics=has_statistics, known=recorded)
                written[SOURCES_FILE] = sources_text(sources.model_copy(update={"made": made}))
            for name, text in written.items():
                (partial / name).write_text(text, encoding="utf-8")
            _publish(partial, folder)
    except (OSError, SafetensorError) as error:  # the latter when the disk fills up after all
        raise InputError(f"{folder}: cannot be written ({error})") from None
    return folder


@contextmanager
def _partial_folder(partial: Path, manifest: str) -> Iterator[None]:
    """Lock the folder in which a checkpoint is being written, and keep only shards of the same one.

    A process that is killed leaves it behind, and so does Ctrl-C: complete shards need not be
    written again. After an error it is removed.

    Raises:
        InputError: another process is writing there.
    """
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{partial}: another process is writing there") from None
    try:
        written = partial / _MANIFEST
        same = written.is_file() and written.read_text(encoding="utf-8") == manifest
        for path in partial.iterdir():
            if path.name != _LOCK and not (same and path.suffix == ".safetensors"):
                path.unlink()
        written.write_text(manifest, encoding="utf-8")
        yield
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        lock.release()


def _manifest(recipe: Recipe, kernel: Kernel, shard_bytes: int) -> str:
    """Describe a checkpoint: equal for two whose shards have the same bytes."""
    parts = {
        "recipe": recipe.digest,
        "weights": kernel.weights,
        "shard_bytes": shard_bytes,
        "evomerge": __version__,
        "torch": str(torch.__version__),
    }
    return json.dumps(parts, indent=2) + "\n"


def _publish(partial: Path, folder: Path) -> None:
    """Flush a complete folder to the disk, then give it its name."""
    for name in (_MANIFEST, _LOCK):
        (partial / name).unlink()
    for path in (*partial.iterdir(), partial):
        sync(path)
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
    sync(folder.parent)


def checkpoint_size(recipe: Recipe, layout: Layout, kernel: Kernel) -> int:
    """Return the bytes of a checkpoint's weights.

    Args:
        recipe: of the checkpoint.
        layout: the base model's.
        kernel: with the models, and the dtype to which their weights are rounded.
    """
    steps = plan(recipe, layout, kernel.sources)
    merged = sum(math.prod(s.shape) * kernel.dtype(s.tensor.name).itemsize for s in steps)
    return merged + sum(tensor.nbytes for tensor in kernel.sources[BASE].beside().values())


def check_free(folder: Path) -> Path:
    """Return the absolute folder in which a checkpoint will be written.

    Raises:
        InputError: the folder exists and is not empty.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; choose another --to")
    return folder


def _write_config(
    recipe: Recipe, models: CheckedModels, kernel: Kernel, folder: Path, trust_remote_code: bool
) -> None:
    """Write the base's config with the recipe's layers and experts, and the weights' dtype."""
    plan(recipe, models.layout, models.sources)  # says better than the config what is wrong
    base, dtype = models.sources[BASE], kernel.dtype(models.layout.tensors[0].name)

    def save(config: PretrainedConfig) -> str:
        config.dtype = dtype
        config.save_pretrained(folder)
        return (folder / "config.json").read_text(encoding="utf-8")

    if recipe.mixture is not None:
        flags = {"trust_remote_code": trust_remote_code}
        try:
            save(config_with_experts(base, models.layout, recipe.mixture.experts, **flags))
        except InputError as error:
            raise InputError(f"recipe: mixture: {error}") from None
    elif keeps_layers(recipe, models.layout):
        text = base.remembered(f"config in {dtype}", lambda: save(base.config_to_save()))
        (folder / "config.json").write_text(text, encoding="utf-8")
    else:
        if base.beside():
            raise InputError(
                "path: layers of a multimodal model keep their order and number, since the rest of "
                f"the model in {base.folder} is built around it"
            )
        config, layers = base.config_to_save(), [slot.layer for slot in recipe.path]
        config = config_of_path(config, layers, trust_remote_code=trust_remote_code)
        config.architectures = [models.layout.architecture]
        save(config)


def _copy_companions(source: Path, folder: Path, kinds: Set[str]) -> None:
    """Copy the small files of these suffixes that lie beside the source's weights."""
    for path in sorted(source.iterdir()):
        excluded = path.name in _NOT_COPIED or path.name.endswith(_INDEX)
        if path.is_file() and path.suffix in kinds and not excluded:
            shutil.copyfile(path, folder / path.name)
