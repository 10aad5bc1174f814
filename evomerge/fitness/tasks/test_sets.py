"""Refuse public test sets: others report scores on them, and a search should not see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FILE_FORMATS
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from evomerge.common.errors import InputError

BUILT_IN = Path(lm_eval.tasks.__file__).parent
_KEYS = ("dataset_path", "dataset_kwargs", "test_split", "validation_split")


def is_built_in(entry: Entry) -> bool:
    """Say whether a task, group or tag is lm-eval's own."""
    return entry.yaml_path is not None and BUILT_IN in Path(entry.yaml_path).resolve().parents


def test_set_named(entry: Entry) -> str | None:
    """Name the public test set that a built-in task scores, before its data is loaded."""
    if entry.kind != Kind.TASK or not is_built_in(entry):
        return None
    return _test_set(load_yaml(entry.yaml_path, resolve_func=False), built_in=True)


def test_set_of(name: str, task: Any, index: Mapping[str, Entry]) -> str | None:
    """Name the public test set that a loaded task scores, `openai/gsm8k, split test`, or None."""
    # A task that is written down within a group has no entry of its own
    entry = index[name if name in index else name.partition("::")[0]]
    config = {key: getattr(task.config, key, None) for key in _KEYS}
    return _test_set({**config, "dataset_path": task.DATASET_PATH}, is_built_in(entry))


def refuse(test_sets: Iterable[tuple[str, str | None]], where: str) -> None:
    """Refuse tasks that score public test sets, given as (task, test set).

    Raises:
        InputError: there are some; begins with `where`.
    """
    found = [f"{task} scores {test_set}" for task, test_set in test_sets if test_set]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InputError(
            f"{where}: {found[0]}{more}, a public test set: once a search has seen it, a score on "
            "it says nothing. Search on other documents (a task file of your own with test_split: "
            "train, say), or set fitness.allow_test_sets: true and quote the campaign's own test "
            "split alone"
        )


def _test_set(config: Mapping[str, Any], built_in: bool) -> str | None:
    """Name data set and split, if they are public.

    What one of lm-eval's own tasks scores is what everybody reports, even where the split is
    called validation, as the test's answers are secret. A task file of one's own may score any
    split of a public data set, and is held to what the split is called. Files of this machine are
    nobody else's concern.
    """
    path, kwargs = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    local_files = path in FILE_FORMATS and "://" not in str(kwargs.get("data_files"))
    if not path or local_files or Path(path).exists():
        return None
    split = config.get("test_split") or config.get("validation_split") or "test"
    data = "files of the web" if path in FILE_FORMATS else path
    return f"{data}, split {split}" if built_in or "test" in split.lower() else None
