"""Snapshots of the optimizer's state, so that a resume need not replay a study from its beginning.

The record is the truth, and a snapshot is only a short cut to what its replay would give: it names
the history of trials that it has been told of by a digest, and the campaign and the program that
made it by another. One that does not fit, or is damaged, is passed over, and the record is
replayed. So is the record of an optimizer whose state cannot be written: of other packages, and
Optuna's samplers.

A snapshot is a pickle, of which only numbers, arrays and evomerge's own plain objects are read:
anything else, which could run code, is refused.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import os
import pickle
import platform
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
from typing_extensions import override

from evomerge.common.version import __version__
from evomerge.judging.corpus_values import CorpusValues, is_corpus
from evomerge.judging.scores import Judge
from evomerge.search.optimizers import Optimizer
from evomerge.study.record import Evaluation

FILE = "optimizer.snapshot"
"""Its name in the run's folder."""
LEAST = 500
"""Trials below which there is none: their replay takes no time."""
GROWTH = 1.1
"""The next one is written after so many times as many trials, so that writing costs little."""


class Snapshots:
    """The snapshot of one run, and the history that the optimizer has been told of."""

    def __init__(self, path: Path | None, begun: str) -> None:
        """Begin without trials.

        Args:
            path: the file; None: no snapshot is read or written.
            begun: what the history begins with; see `beginning`.
        """
        self._path = path
        self._history = hashlib.sha256(begun.encode())
        self._count, self._written, self._due = 0, 0, LEAST

    def restore(self, optimizer: Optimizer, judge: Judge, trials: Sequence[Evaluation]) -> int:
        """Bring a new optimizer to the state of the snapshot, if there is one that fits.

        Args:
            optimizer: of the campaign, as it is built.
            judge: that of the search split.
            trials: the optimizer's own, in the order of the tells.

        Returns:
            How many of them it has been told of; 0: it is as it was.
        """
        # 1. the history that the snapshot covers must be that of the record
        head, state = self._read()
        covered = trials[: head.get("trials", 0)]
        history = self._history.copy()
        for trial in covered:
            history.update(_line(trial))
        if not covered or head["history"] != history.hexdigest():
            return 0
        # 2. whatever cannot be read was written by another program
        try:
            held = _Reader(io.BytesIO(state), _known(optimizer, judge)).load()
        except Exception:
            return 0
        vars(optimizer).clear()
        vars(optimizer).update(held)
        self._history, self._count = history, len(covered)
        self._due, self._written = int(GROWTH * self._count) + 1, self._count
        return len(covered)

    def told(self, trial: Evaluation) -> None:
        """Add a trial to the history, which the optimizer has been told of."""
        self._history.update(_line(trial))
        self._count += 1

    def write(self, optimizer: Optimizer, judge: Judge, *, due: bool = False) -> None:
        """Write a snapshot after the trials told so far; of fewer than `LEAST` there is none.

        A state that cannot be written, and a folder that cannot, are left without.

        Args:
            optimizer: has been told of these trials.
            judge: that of the search split.
            due: only if there are many more than the last one covered.
        """
        least = self._due if due else max(LEAST, self._written + 1)
        if self._path is None or self._count < least:
            return
        self._due, self._written = int(GROWTH * self._count) + 1, self._count
        text = io.BytesIO()
        try:
            _Writer(text, _known(optimizer, judge)).dump(vars(optimizer))
            _Reader(io.BytesIO(text.getvalue()), _known(optimizer, judge)).load()
        except Exception:
            self._path = None  # it cannot be written later, either
            return
        state = zlib.compress(text.getvalue(), 1)
        head = {
            "trials": self._count,
            "history": self._history.hexdigest(),
            "state": hashlib.sha256(state).hexdigest(),
        }
        partial = self._path.with_name(f".{self._path.name}.partial")
        with suppress(OSError):
            partial.write_bytes(json.dumps(head).encode() + b"\n" + state)
            os.replace(partial, self._path)

    def _read(self) -> tuple[dict[str, Any], bytes]:
        """Read head and state; empty ones where there is none that is whole."""
        with suppress(OSError, ValueError, KeyError, TypeError, zlib.error):
            if self._path is not None:
                line, _, state = self._path.read_bytes().partition(b"\n")
                head = json.loads(line)
                if head["state"] == hashlib.sha256(state).hexdigest():
                    return head, zlib.decompress(state)
        return {}, b""


def beginning(
    identity: Mapping[str, Any], optimizer: Optimizer, record: Sequence[Evaluation]
) -> str:
    """Say what the state of an optimizer rests on beside its trials, for `Snapshots`.

    Args:
        identity: the campaign's.
        optimizer: as it is built, before it is told anything.
        record: the study's evaluations: what stands beside the trials decides how these are judged.
    """
    domain = optimizer.domain
    arrays = [domain.initial, *domain.starts, *domain.scales.values(), *domain.seeds.values()]
    beside = [_line(e).decode() for e in record if e.split == "search" and e.role in _BESIDE]
    facts = {
        "identity": identity,
        "optimizer": type(optimizer).__qualname__,
        "genes": repr(domain.genes),
        "arrays": [np.asarray(array).tobytes().hex() for array in arrays],
        "loss": domain.loss is not None,
        "beside": beside,
        "program": _program(),
    }
    return json.dumps(facts, sort_keys=True, default=str)


@functools.cache
def _program() -> list[str]:
    """The versions of what computes a state: Python, libraries, and every line of our own code."""
    own = hashlib.sha256()
    for room in ("search", "judging"):
        for file in sorted((Path(__file__).parents[1] / room).rglob("*.py")):
            own.update(file.read_bytes())
    libraries = [version(name) for name in ("numpy", "scipy", "cmaes", "scikit-learn")]
    return [__version__, platform.python_version(), *libraries, own.hexdigest()]


def _line(trial: Evaluation) -> bytes:
    """A trial's line in the history: a recorded trial is a fact, and these tell it from others."""
    told = (trial.number, trial.ask, trial.tells, trial.value, trial.se, trial.violation)
    return f"{trial.digest} {trial.name} {told!r} {trial.n} {trial.estimated}\n".encode()


def _known(optimizer: Optimizer, judge: Judge) -> dict[str, Any]:
    """Objects of the campaign that a state refers to, by name; they are not part of it."""
    return {"optimizer": optimizer, "domain": optimizer.domain, "judge": judge}


class _Writer(pickle.Pickler):
    """Writes a state; the campaign's own objects, and their methods, by name."""

    def __init__(self, file: io.BytesIO, known: Mapping[str, Any]) -> None:
        super().__init__(file, protocol=5)
        self._names = {id(one): name for name, one in known.items()}

    @override
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, MethodType) and id(obj.__self__) in self._names:
            return [self._names[id(obj.__self__)], obj.__name__]
        return [self._names[id(obj)]] if id(obj) in self._names else None

    @override
    def reducer_override(self, obj: Any) -> Any:
        if is_corpus(obj):
            return _corpus_values, (obj.aggregate, obj.parts)
        if type(obj).__module__.startswith("cmaes."):
            # as it is: cmaes' own way makes the covariance symmetric to the last bit, and another
            return _blank, (type(obj),), dict(vars(obj)), None, None, _fill
        return NotImplemented


class _Reader(pickle.Unpickler):
    """Reads a state; refuses whatever is not of the kinds that a state is made of."""

    def __init__(self, file: io.BytesIO, known: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._known = known

    @override
    def persistent_load(self, pid: Any) -> Any:
        name, *method = pid
        if any(one not in _METHODS for one in method):
            raise pickle.UnpicklingError(f"{name}.{method[0]}: no part of a snapshot")
        found = self._known[name]
        return getattr(found, method[0]) if method else found

    @override
    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == __name__ and global_name in _MAKERS:
            return _MAKERS[global_name]
        own = module_name.startswith(_OWN) and "." not in global_name
        if (module_name, global_name) in _PLAIN or own:
            found = getattr(importlib.import_module(module_name), global_name)
            if (module_name, global_name) in _PLAIN or isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"{module_name}.{global_name}: no part of a snapshot")


def _corpus_values(aggregate: str, parts: Any) -> CorpusValues:
    return CorpusValues.of(aggregate, parts)


def _blank(kind: type) -> Any:
    return object.__new__(kind)


def _fill(made: Any, attributes: Mapping[str, Any]) -> None:
    vars(made).update(attributes)


_MAKERS = {made.__name__: made for made in (_corpus_values, _blank, _fill)}
_BESIDE = ("parent", "baseline", "grid")
"""Roles of what optimizers begin with, and what they are judged against."""
_METHODS = ("objectives_of",)
"""Methods of the campaign's objects that a state may refer to."""
_OWN = (
    *("evomerge.search.", "evomerge.judging.scores", "evomerge.study.record", "cmaes."),
    "sklearn.gaussian_process.kernels",
)
"""Modules whose classes a state may hold."""
_PLAIN = {
    *(("builtins", name) for name in ("set", "frozenset", "complex", "list", "dict", "bytearray")),
    *(("collections", name) for name in ("deque", "OrderedDict", "defaultdict", "Counter")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(
        ("numpy.random._pickle", f"__{name}_ctor")
        for name in ("randomstate", "generator", "bit_generator")
    ),
    ("numpy.random._mt19937", "MT19937"),
    ("numpy.random._pcg64", "PCG64"),
    ("numpy.random.bit_generator", "SeedSequence"),
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
    ("sklearn.linear_model._bayes", "BayesianRidge"),
}
"""What else a state may hold: containers, arrays, generators of random numbers, a regression."""
