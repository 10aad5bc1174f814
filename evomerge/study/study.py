"""The study: what a campaign has established so far, kept in Optuna's storage.

One driver writes it, under a lock; any number of readers look on. Each evaluation is one trial,
added whole in one transaction (`storage.create_new_trial(template)`), so that a kill leaves all
of it or none. Everything a resume needs is here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

import evomerge
from evomerge.errors import InputError
from evomerge.study import codec
from evomerge.study.identity import as_json, check_identity
from evomerge.study.record import Evaluation, Marker
from evomerge.study.storage import (
    describe,
    errors_explained,
    open_for_reading,
    open_for_writing,
    quiet,
    take_lock,
)
from evomerge.study.trial import (
    FINISHED,
    clip,
    constraints_of,
    from_trial,
    intermediate_values,
    state_of,
    utc,
)

SCHEMA = 1
"""How evomerge lays its facts out in a study; raised when older readers would misread them."""
REAL_PARAMS = 64
"""Up to so many genes are Optuna params; beyond, a summary (500 params cost .4 s a trial)."""
SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "genes.min": min,
    "genes.mean": statistics.fmean,
    "genes.max": max,
}

Items = Mapping[str, Mapping[str, list[str]]]
Distributions = Mapping[str, BaseDistribution]


class Study:
    """A campaign's durable record. Make one with `create_or_resume` or `read`."""

    def __init__(self, storage: str, name: str, *, writable: bool) -> None:
        """Open the storage, under the driver's lock when `writable`."""
        self.name = name
        self._url = storage
        self._writable = writable
        self._distributions: dict[str, BaseDistribution] = {}
        self._gene_count = 0
        self._seen: dict[int, Evaluation | None] = {}
        self._loaded = False
        self._lock = take_lock(storage) if writable else None
        try:
            self._rdb = open_for_writing(storage) if writable else open_for_reading(storage)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self._storage = optuna.storages.get_storage(self._rdb)

    @classmethod
    def create_or_resume(
        cls,
        storage: str,
        name: str,
        *,
        identity: Mapping[str, Any],
        campaign: Mapping[str, Any],
        genes: Distributions,
    ) -> Study:
        """Open the study for the one driver that writes it; make it if there is none.

        Args:
            storage: an Optuna RDB URL (`sqlite_url(path)` for a file).
            name: the study's name in that storage.
            identity: nested JSON data that must not change between runs: models, space, fitness,
                optimizer, seed, `versions: {"lm_eval": ...}`.
            campaign: the campaign as JSON data; replaces the stored one.
            genes: each gene's distribution over its natural values.

        Raises:
            InputError: another driver is running; the identity differs; the study is not
                evomerge's, or of a newer evomerge; the storage cannot be opened or written.
                Nothing recorded is touched then.
        """
        study = cls(storage, name, writable=True)
        try:
            with study._explained():
                study._adopt(as_json(identity), as_json(campaign))
        except BaseException:
            study.close()
            raise
        study._set_genes(genes)
        return study

    @classmethod
    def read(cls, storage: str, name: str) -> Study:
        """Open the study to look at it: takes no lock, writes nothing, may follow a running one.

        Raises:
            InputError: there is no such study, or it is not one this evomerge can read.
        """
        study = cls(storage, name, writable=False)
        try:
            with study._explained():
                study._find()
        except BaseException:
            study.close()
            raise
        return study

    def close(self) -> None:
        """Close the storage and let another driver in."""
        self._rdb.remove_session()
        self._rdb.engine.dispose()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change between runs, as JSON data."""
        return self._fact("identity")

    @property
    def campaign(self) -> dict[str, Any]:
        """The campaign file of the latest run, as JSON data."""
        return self._fact("campaign")

    def add(self, evaluation: Evaluation) -> Evaluation:
        """Record an evaluation as one trial in one transaction; returns it with its number.

        Params are clipped to their bounds for Optuna, which refuses rounding excess; the genome
        keeps the exact values. Do not change the evaluation's arrays afterwards: `evaluations()`
        hands out the same ones.

        Raises:
            InputError: the storage cannot be written; nothing of it is recorded then.
        """
        trial = self._to_trial(evaluation)
        with self._explained():
            trial_id = self._storage.create_new_trial(self._id, template_trial=trial)
            number = self._storage.get_trial(trial_id).number
        recorded = replace(evaluation, number=number, finished=utc(trial.datetime_complete))
        if self._loaded:
            self._seen[number] = recorded
        return recorded

    def evaluations(self) -> list[Evaluation]:
        """Every recorded evaluation, in trial order.

        Trials that evomerge did not write, or that are unfinished or damaged, are passed over.
        Each trial is read and decoded once; the driver, who alone writes, reads only at first.
        """
        if not (self._writable and self._loaded):
            self._load()
        return [evaluation for evaluation in self._seen.values() if evaluation is not None]

    def mark(self, marker: Marker) -> None:
        """Note that work on a candidate begins; replaces the slot's earlier marker.

        Raises:
            InputError: the storage cannot be written.
        """
        self._set_facts(codec.encode_marker(marker))

    def markers(self) -> list[Marker]:
        """What was in flight when the driver died, by slot: marked, but never recorded."""
        recorded = {(e.digest, e.split) for e in self.evaluations()}
        asks = {None, *(e.ask for e in self.evaluations())}
        return [
            marker
            for marker in codec.decode_markers(self._facts())
            if (marker.digest, marker.split) not in recorded or marker.ask not in asks
        ]

    def set_items(self, items: Items) -> None:
        """Store the item ids, {split: {task: [ids]}}, once; later calls check that they agree.

        Raises:
            InputError: the documents are not those the study began with; names split and task.
        """
        given = as_json(items)
        stored = self.items()
        if not stored or not self._has_trials():
            self._set_facts(codec.pack_json("items", given))
            return
        for split in dict.fromkeys([*stored, *given]):
            ours, theirs = given.get(split, {}), stored.get(split, {})
            for task in dict.fromkeys([*theirs, *ours]):
                if ours.get(task) != theirs.get(task):
                    raise InputError(
                        f"{self._where}: the documents of task {task!r} in split {split!r} are "
                        f"not those the study began with; {_remedy(task, given, stored)}use "
                        "another study.name or --out"
                    )

    def items(self) -> dict[str, dict[str, list[str]]]:
        """The item ids, {split: {task: [ids]}}; empty until they are set."""
        try:
            return codec.unpack_json("items", self._facts()) or {}
        except ValueError:  # killed between chunks, before any evaluation could rest on them
            return {}

    def set_rungs(self, rungs: Mapping[str, Any]) -> None:
        """Store which items each rung holds; once, before a candidate is measured on one.

        Raises:
            InputError: the storage cannot be written.
        """
        self._set_facts(codec.pack_json("rungs", rungs))

    def rungs(self) -> dict[str, Any] | None:
        """What `set_rungs` stored, or None."""
        try:
            return codec.unpack_json("rungs", self._facts())
        except ValueError:  # killed between chunks, before any evaluation could rest on them
            return None

    def set_note(self, key: str, value: Any) -> None:
        """Keep a small fact (JSON, under 60 kB) at study level; replaces an earlier one.

        Raises:
            InputError: the storage cannot be written.
        """
        with self._explained():
            self._storage.set_study_user_attr(self._id, f"note:{key}", value)

    def note(self, key: str) -> Any:
        """The fact kept under `key`, or None."""
        with self._explained():
            return self._storage.get_study_user_attrs(self._id).get(f"note:{key}")

    @property
    def _where(self) -> str:
        return f"study {self.name!r} in {describe(self._url)}"

    def _explained(self) -> AbstractContextManager[None]:
        return errors_explained(self._url)

    def _adopt(self, identity: dict[str, Any], campaign: dict[str, Any]) -> None:
        """Make the study, or check that the existing one is this campaign's."""
        try:
            with quiet():
                self._id = self._storage.create_new_study(
                    [optuna.study.StudyDirection.MAXIMIZE], self.name
                )
        except optuna.exceptions.DuplicatedStudyError:
            self._id = self._storage.get_study_id_from_name(self.name)
        if self._is_ours() and self._has_trials():
            check_identity(self._where, self.identity, identity)
            if self.campaign != campaign:
                self._set_facts(codec.pack_json("campaign", campaign))
            return
        if not self._is_ours() and not self._is_blank():
            raise self._foreign()
        # Nothing is recorded yet, so nothing can be mixed: a campaign file that was mended after a
        # first failed start makes the study its own.
        self._set_facts(codec.pack_json("identity", identity))
        self._set_facts(codec.pack_json("campaign", campaign))
        # Last, so that a study that says it is ours is whole, whenever the driver is killed.
        stamp = {"schema": SCHEMA, "version": evomerge.__version__}
        self._storage.set_study_user_attr(self._id, "evomerge", stamp)

    def _find(self) -> None:
        """Look up the study by its name, and make sure that it is one to read."""
        try:
            self._id = self._storage.get_study_id_from_name(self.name)
        except KeyError:
            there = optuna.get_all_study_names(self._storage)
            found = f"found {', '.join(map(repr, there))}" if there else "found none"
            raise InputError(f"{describe(self._url)}: no study {self.name!r}; {found}") from None
        if not self._is_ours():
            raise self._foreign()

    def _is_ours(self) -> bool:
        """Whether evomerge made the study; refuses one that a newer evomerge laid out."""
        stamp = self._storage.get_study_user_attrs(self._id).get("evomerge")
        if stamp is None:
            return False
        if stamp["schema"] > SCHEMA:
            raise InputError(
                f"{self._where} was written by evomerge {stamp['version']}, newer than this "
                f"{evomerge.__version__}; upgrade evomerge"
            )
        return True

    def _is_blank(self) -> bool:
        """Whether nobody used the study yet: new, or its maker was killed while making it."""
        return (
            not self._storage.get_study_user_attrs(self._id)
            and not self._has_trials()
            and self._storage.get_study_directions(self._id)
            == [optuna.study.StudyDirection.MAXIMIZE]
        )

    def _has_trials(self) -> bool:
        return self._storage.get_n_trials(self._id) > 0

    def _foreign(self) -> InputError:
        return InputError(
            f"{self._where} was not made by evomerge; use another study.name or storage"
        )

    def _facts(self) -> dict[str, Any]:
        """The study's packed attributes, which dashboards do not show."""
        with self._explained():
            return self._storage.get_study_system_attrs(self._id)

    def _fact(self, key: str) -> dict[str, Any]:
        try:
            return codec.unpack_json(key, self._facts()) or {}
        except ValueError as error:
            raise InputError(f"{self._where} is damaged ({error})") from error

    def _set_facts(self, packed: Mapping[str, str]) -> None:
        with self._explained():
            for key, chunk in packed.items():
                self._storage.set_study_system_attr(self._id, key, chunk)

    def _set_genes(self, genes: Distributions) -> None:
        """The distributions of Optuna's params: one per gene, or the summaries'."""
        self._gene_count = len(genes)
        if len(genes) <= REAL_PARAMS:
            self._distributions = dict(genes)
        else:
            numeric = [
                d for d in genes.values() if isinstance(d, FloatDistribution | IntDistribution)
            ]
            low = min((float(d.low) for d in numeric), default=0.0)
            high = max((float(d.high) for d in numeric), default=0.0)
            self._distributions = dict.fromkeys(SUMMARIES, FloatDistribution(low, high))

    def _to_trial(self, evaluation: Evaluation) -> FrozenTrial:
        """The whole trial, before its number is known."""
        summarised = self._gene_count > REAL_PARAMS and bool(evaluation.params)
        params: Mapping[str, Any] = evaluation.params
        if summarised:
            values = [float(v) for v in params.values() if not isinstance(v, str)] or [0.0]
            params = {name: summary(values) for name, summary in SUMMARIES.items()}
        distributions = {gene: self._distributions[gene] for gene in params}
        trial = optuna.trial.create_trial(
            state=state_of(evaluation),
            value=None if evaluation.estimated else evaluation.value,
            intermediate_values=intermediate_values(evaluation),
            params={gene: clip(value, distributions[gene]) for gene, value in params.items()},
            distributions=distributions,
            user_attrs=codec.plain_attributes(evaluation),
            system_attrs=codec.packed_attributes(evaluation, with_params=summarised),
            # Optuna's `best_trial` considers feasible trials only: a yardstick, or a score on a
            # later split, violates this constraint and can never be the study's best.
            constraints=constraints_of(evaluation),
        )
        finished = (evaluation.finished or datetime.now(UTC)).astimezone().replace(tzinfo=None)
        trial.datetime_start = finished - timedelta(seconds=sum(evaluation.seconds.values()))
        trial.datetime_complete = finished
        return trial

    def _load(self) -> None:
        """Decode the trials not seen yet."""
        with self._explained():
            trials = self._storage.get_all_trials(self._id, deepcopy=False, states=FINISHED)
        for trial in trials:
            if trial.number not in self._seen:
                self._seen[trial.number] = from_trial(trial)
        self._loaded = True


def _remedy(task: str, ours: Items, theirs: Items) -> str:
    """What else than a new study might help: documents that were only dealt anew cannot return."""
    searched = set(theirs.get("search", {}).get(task, []))
    moved = any(searched & set(ours[split].get(task, [])) for split in ours if split != "search")
    why = "some that were searched on stand in another split now, for another task has them too; "
    return why if moved else "restore them, or "
