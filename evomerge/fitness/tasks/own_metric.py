"""Own metrics: Python functions of the user that score documents with the model itself."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from evomerge.common.data_files import json_data
from evomerge.common.errors import CandidateError, InputError
from evomerge.config import CallableConfig
from evomerge.fitness.tasks.documents import item_ids
from evomerge.fitness.tasks.score_source import ScoreSource
from evomerge.judging.constraints import Values

Function = Callable[[Any, Any, list[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class OwnMetric(ScoreSource):
    """A function of the user, and the documents it scores.

    Attributes:
        function: `(model, tokenizer, items)` → one number per item.
        code: the text of the function's module.
        lm: lm-eval's object around the model; None where nothing is scored.
    """

    function: Function
    code: str
    lm: Any

    @override
    def asked(self) -> str:
        # SHA-256 over the documents and the text of the function's module.
        digest = hashlib.sha256(self.code.encode())
        for document in self.documents:
            digest.update(json.dumps(document, sort_keys=True).encode())
        return digest.hexdigest()

    @override
    def values(self, places: Sequence[int]) -> Values:
        if not places:
            return np.zeros(0)
        items = [deepcopy(self.documents[place]) for place in places]
        try:
            with torch.no_grad():
                found = self.function(self.lm.model, self.lm.tokenizer, items)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        # Anything can come out of somebody's own code.
        except Exception as error:
            raise CandidateError(
                f"{self.name}: {self.metric} failed: {type(error).__name__}: {error}"
            ) from error
        values = self._as_numbers(found, len(items))
        for place, value in zip(places, values, strict=True):
            if not np.isfinite(value):
                raise CandidateError(f"{self.name}: {self.metric} is {value} on {self.ids[place]}")
        return values

    def _as_numbers(self, found: Any, count: int) -> Values:
        try:
            values = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.zeros(())
        if values.shape != (count,):
            raise InputError(
                f"{self.name}: {self.metric} returned {str(found)[:80]} for {count} items; "
                "it must return one number for each"
            )
        return values


def load_own_metric(where: str, config: CallableConfig, lm: Any) -> OwnMetric:
    """Import the function and read the documents.

    Args:
        where: the entry's key, `fitness.tasks[1]`.
        config: the entry.
        lm: lm-eval's object around the model; None where nothing is scored.

    Raises:
        InputError: the module, the function or the documents cannot be had; names the key.
    """
    module = _imported(f"{where}.callable", config.module)
    function = getattr(module, config.function, None)
    if not callable(function):
        raise InputError(f"{where}.callable: {config.module} has no function {config.function!r}")
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        raise InputError(
            f"{where}.callable: {config.function} must take (model, tokenizer, items)"
        ) from None
    except ValueError:
        pass  # a builtin, which has no signature to look at
    documents = tuple(read_documents(f"{where}.documents", Path(config.documents)).values())
    return OwnMetric(
        name=config.task,
        kind="callable",
        metric=config.function,
        filter="",
        higher_is_better=config.higher_is_better,
        weight=config.weight,
        ids=item_ids(documents),
        excluded=frozenset(),
        requests=((),) * len(documents),
        function=function,
        code=_code(module),
        documents=documents,
        lm=lm,
    )


def _imported(where: str, name: str) -> ModuleType:
    """Import a module by its dotted name, or by its file's path, beside which others are found."""
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name)
        digest = hashlib.sha256(name.encode() + path.read_bytes()).hexdigest()
        known = f"_evomerge_{path.stem}_{digest[:16]}"
        if known not in sys.modules:
            if str(path.parent) not in sys.path:
                sys.path.append(str(path.parent))
            spec = importlib.util.spec_from_file_location(known, path)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[known] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[known])
            except BaseException:
                del sys.modules[known]
                raise
        return sys.modules[known]
    except OSError as error:
        raise InputError(f"{where}: {name} cannot be read ({error.strerror})") from None
    # Importing runs somebody's own code.
    except Exception as error:
        raise InputError(
            f"{where}: {name} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _code(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):  # not written in Python
        return module.__name__


_FORM = 'write one JSON object a line, such as {"prompt": "…"}'


def read_documents(where: str, path: Path) -> dict[int, dict[str, Any]]:
    """Read JSON objects, one a line, by the numbers of their lines.

    Raises:
        InputError: the file cannot be read, holds none, or something else; begins with `where`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a string may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: {path} cannot be read ({error})") from None
    documents = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{where}: {path}, line {number}"
        try:
            document = json_data(line, place)
        except InputError as error:
            raise InputError(f"{error}; {_FORM}") from None
        if not isinstance(document, dict):
            raise InputError(f"{place}: {_FORM}")
        documents[number] = document
    if not documents:
        raise InputError(f"{where}: {path} has no documents")
    return documents
