"""The study: what a campaign has established so far, kept in Optuna's storage.

One driver writes it, under a lock; any number of readers look on. Each evaluation is one trial,
added whole in one transaction (`storage.create_new_trial(template)`), so that a kill leaves all
of it or none. Everything a resume needs is here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import InputError
from evomerge.common.version import __version__
from evomerge.study import codec
from evomerge.study.access import Access, OutagePolicy
from evomerge.study.driver import Driver, driver_of
from evomerge.study.finished_trial import FINISHED, FinishedTrial, facts_of, from_trial
from evomerge.study.identity import as_json, check_identity
from evomerge.study.record import DescentRecord, Evaluation, Marker, PolishRecord
from evomerge.study.storage_url import describe
from evomerge.study.stored import MemoryParts, RecentParts, stored

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from evomerge.study.trial import Genes

SCHEMA = 1
"""Version of the layout of facts in a study; raised when older readers would misread them."""
PACKED = {"packed": True}
"""Stands in the place of a note that is too long to be shown."""
DESCENTS = "descents"
"""The note that holds gradient descents."""
EARLIER = "earlier_results"
"""The note that holds results of earlier searches."""
SCALES = "scales_at_start"
"""The note that says how far genes vary at first around the ends of descents."""
SLOPES = "slopes_at_start"
"""The note that holds sums over the gradients of descents."""
POLISH = "polish"
"""The note that holds gradient descents from finalists."""
BY_DEFAULT = "by_default"
"""The note of the defaults that it was begun with: key of the campaign file → value."""
PIECES = "pieces"
"""The note of the pieces that tensors are cut in: label of a group → their number."""
BEGUN_WITH = "optimizer_begun_with"
"""The note of what the optimizer chose by itself when it began, such as the form of a matrix."""
KNOWN_AT_START = "known_at_start"
"""The note of what the optimizer began with."""
WITHDRAWN = "withdrawn"
"""The note of evaluations that failed through no fault of their own; see `Study.withdraw`."""
OWN = ("digest", "split", "role", "name", "ask")
"""The attributes by which an evaluation is recognised."""

Items = Mapping[str, Mapping[str, list[str]]]


class Study:
    """A campaign's durable record. Make one with `create_or_resume` or `read`."""

    def __init__(
        self, storage: str, name: str, *, writable: bool, outages: OutagePolicy | None = None
    ) -> None:
        """Open the storage, under the driver's lock when `writable`."""
        self.name = name
        self._url = storage
        self._writable = writable
        self._genes: Mapping[str, BaseDistribution] = {}
        self._seen: dict[int, Evaluation | None] = {}
        self._read_to = -1  # the highest id of a trial that was read from a SQLite file
        self._parts: RecentParts | None = None  # of these
        self._withdrawn: Mapping[str, list[int]] = {}
        self._loaded = False
        self._still = False
        self._attributes: dict[str, dict[str, Any]] = {}  # while it is kept still
        self._next = 0  # no number that an evaluation is still to get is below
        self._access = Access(storage, name, writable=writable, outages=outages)
        self._storage, self._do = self._access.storage, self._access.do

    @classmethod
    def create_or_resume(
        cls,
        storage: str,
        name: str,
        *,
        identity: Mapping[str, Any],
        campaign: Mapping[str, Any],
        genes: Mapping[str, BaseDistribution],
        outages: OutagePolicy | None = None,
    ) -> Study:
        """Open the study for the one driver that writes it; make it if there is none.

        Args:
            storage: an Optuna RDB URL (`sqlite_url(path)` for a file).
            name: the study's name in that storage.
            identity: nested JSON data that must not change between runs: models, space, fitness,
                optimizer, seed, `versions: {"lm_eval": ...}`.
            campaign: the campaign as JSON data; replaces the stored one.
            genes: each gene's distribution over its natural values.
            outages: with a server that goes away while the study is open; none when not given.

        Raises:
            InputError: another driver is running; the identity differs; the study is not
                evomerge's, or of a newer evomerge; the storage cannot be opened or written.
                Nothing recorded is touched then.
        """
        study = cls(storage, name, writable=True, outages=outages)
        try:
            study._do(lambda: study._adopt(as_json(identity), as_json(campaign)))
            study._access.sign(study._id)
        except BaseException:
            study.close()
            raise
        study._genes = genes
        return study

    @classmethod
    def read(cls, storage: str, name: str) -> Study:
        """Open the study to look at it: takes no lock, writes nothing, may follow a running one.

        Raises:
            InputError: there is no such study, or it is not one this evomerge can read.
        """
        study = cls(storage, name, writable=False)
        try:
            study._do(study._find)
        except BaseException:
            study.close()
            raise
        return study

    @classmethod
    def reopen(cls, storage: str, name: str) -> Study:
        """Open an existing study for writing, under the driver's lock, whatever its campaign says.

        Raises:
            InputError: there is no such study, a driver is running on it, or it cannot be written.
        """
        with cls.read(storage, name):  # a storage that is opened for writing is made where missing
            pass
        study = cls(storage, name, writable=True)
        try:
            study._do(study._find)
            study._access.sign(study._id)
        except BaseException:
            study.close()
            raise
        return study

    def close(self) -> None:
        """Close the storage and let another driver in."""
        self._access.close()

    def stop_waiting(self) -> None:
        """Wait no longer for a database that is away: the user wants to stop."""
        self._access.stop_waiting()

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
        """The campaign's identity, which must not change between runs, as JSON data."""
        return self._fact("identity")

    @property
    def campaign(self) -> dict[str, Any]:
        """The campaign file of the latest run, as JSON data."""
        return self._fact("campaign")

    @property
    def driven(self) -> bool | None:
        """True while a driver works on the study; None where that cannot be told from here."""
        driver = self.driver
        return None if driver is None else driver == "at work"

    @property
    def driver(self) -> Driver | None:
        """The driver's state; None where that cannot be told from here."""
        return driver_of(self._url)

    def add(self, evaluation: Evaluation) -> Evaluation:
        """Record an evaluation as one trial in one transaction; returns it with its number.

        Params are clipped to their bounds for Optuna, which refuses rounding excess; the genome
        keeps the exact values. Do not change the evaluation's arrays afterwards: `evaluations()`
        hands out the same ones.

        Raises:
            InputError: the storage cannot be written; nothing of it is recorded then.
        """
        from evomerge.study.trial import to_trial

        trial = to_trial(evaluation, self._optuna_genes)
        key, number = self._do(lambda: self._write(trial), lambda: self._arrived(trial))
        self._next = number + 1
        trial.number = number
        # what was recorded, as it is read back: the driver's memory grows by its small facts
        parts = MemoryParts(trial.user_attrs, trial.system_attrs, trial.params)
        if self._parts is None:
            recorded = stored(facts_of(trial), parts)
        else:
            self._parts.keep(key, parts)
            self._read_to = max(self._read_to, key)
            recorded = stored(facts_of(trial, key), self._parts)
        assert recorded is not None
        if self._loaded:
            self._seen[number] = recorded
        return recorded

    @cached_property
    def _optuna_genes(self) -> Genes:
        """The genes as Optuna's params."""
        from evomerge.study.trial import Genes

        return Genes(self._genes)

    def evaluations(self) -> list[Evaluation]:
        """Every recorded evaluation, in trial order.

        Trials that evomerge did not write, or that are unfinished or damaged, are passed over.
        So are those that were withdrawn. Each trial is read and decoded once; the driver, who alone
        writes, reads only at first.
        """
        if not (self._loaded and (self._writable or self._still)):
            self._load()
        passed_over = set(self._withdrawn.get("numbers", ()))
        return [
            evaluation
            for number, evaluation in self._seen.items()
            if evaluation is not None and number not in passed_over
        ]

    def withdraw(self, failed: Collection[Evaluation]) -> None:
        """Take failed evaluations back, so that a resume makes them again.

        A recorded trial is a fact and stays as it is. A note of the study lists the numbers of
        those withdrawn, and `evaluations` passes over them: for whoever reads the study, an
        optimizer's replay included, they were never made. So replay stays exact: a run after the
        withdrawal begins with the replay of what is left, and every later resume replays the same.

        Withdrawn search trials free their ask indices. Those with which the record ends are asked
        anew: with one worker, the campaign is then the one that it would have been without the
        fault. Where later trials stay, the optimizer has gone on without them, and their genomes
        are proposed again (`withdrawn_to_repeat`).

        Raises:
            InputError: the storage cannot be written.
        """
        numbers = {e.number for e in failed if e.number is not None}
        # 1. Their markers go first: left alone, they would say that these are in flight.
        keys = {(e.digest, e.split, e.ask) for e in failed}
        for marker in codec.decode_markers(self._facts()):
            if (marker.digest, marker.split, marker.ask) in keys:
                self.mark(Marker(marker.slot, "", ""))
        # 2. Whose genomes are proposed again.
        own = [e for e in self.evaluations() if e.optimizers_own]
        last = max((e.number or 0 for e in own if e.number not in numbers), default=-1)
        repeat = [e.number for e in own if e.number in numbers and (e.number or 0) < last]
        # 3. The note, after those of earlier withdrawals.
        before = self._withdrawn
        self._withdrawn = {
            "numbers": [*before.get("numbers", []), *sorted(numbers)],
            "repeat": [*before.get("repeat", []), *(n for n in repeat if n is not None)],
        }
        self.set_note(WITHDRAWN, self._withdrawn)

    def withdrawn_to_repeat(self) -> list[Evaluation]:
        """The withdrawn search trials whose genomes are to be proposed again."""
        self.evaluations()
        found = (self._seen.get(number) for number in self._withdrawn.get("repeat", ()))
        return [evaluation for evaluation in found if evaluation is not None]

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep what a reader sees as it is, while the driver goes on."""
        self._attributes = {"user": self._user_facts(), "system": self._facts()}
        self._load()
        self._still = True
        try:
            yield
        finally:
            self._still, self._attributes = False, {}

    def mark(self, marker: Marker) -> None:
        """Note that work on a candidate begins; replaces the slot's earlier marker.

        Raises:
            InputError: the storage cannot be written.
        """
        self._set_facts(codec.encode_marker(marker))

    def markers(self) -> list[Marker]:
        """Markers of what was in flight when the driver died, by slot: never recorded."""
        known = self.evaluations()
        recorded = {(e.digest, e.split) for e in known}
        asks = {None, *(e.ask for e in known)}
        return [
            marker
            for marker in codec.decode_markers(self._facts())
            if marker.digest  # one that was withdrawn has none
            and ((marker.digest, marker.split) not in recorded or marker.ask not in asks)
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
        """The items of the rungs, as `set_rungs` stored them, or None."""
        try:
            return codec.unpack_json("rungs", self._facts())
        except ValueError:  # killed between chunks, before any evaluation could rest on them
            return None

    def set_note(self, key: str, value: Any) -> None:
        """Keep a fact (JSON) at study level; replaces an earlier one.

        Raises:
            InputError: the storage cannot be written.
        """
        shown = value
        if not codec.fits(value):
            self._set_facts(codec.pack_json(f"note/{key}", value))
            shown = PACKED
        self._do(lambda: self._storage.set_study_user_attr(self._id, f"note:{key}", shown))

    def note(self, key: str) -> Any:
        """The fact kept under `key`, or None."""
        shown = self._user_facts().get(f"note:{key}")
        return self._fact(f"note/{key}") if shown == PACKED else shown

    def descents(self) -> list[DescentRecord]:
        """The gradient descents before the search, in the campaign file's order."""
        return [DescentRecord.from_json(one) for one in self.note(DESCENTS) or []]

    def set_descents(self, descents: Sequence[DescentRecord]) -> None:
        """Keep how far the descents have come; replaces what was kept.

        Raises:
            InputError: the storage cannot be written.
        """
        self.set_note(DESCENTS, [asdict(one) for one in descents])

    def earlier(self) -> list[dict[str, Any]]:
        """Results of earlier searches that the optimizer learned before its first ask."""
        return self.note(EARLIER) or []

    def set_earlier(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Keep results of earlier searches, which may be gone at the next resume.

        Raises:
            InputError: the storage cannot be written.
        """
        self.set_note(EARLIER, list(earlier))

    def scales(self) -> list[list[float] | None]:
        """How far genes may vary at first around the end of each of `descents`; empty: unknown."""
        return self.note(SCALES) or []

    def set_scales(self, scales: Sequence[list[float] | None]) -> None:
        """Keep how far genes may vary at first.

        Raises:
            InputError: the storage cannot be written.
        """
        self.set_note(SCALES, list(scales))

    def slopes(self) -> list[list[float]]:
        """What gradients told the surrogate, as in `DescentRecord.slopes`; empty: nothing."""
        return self.note(SLOPES) or []

    def set_slopes(self, slopes: Sequence[list[float]]) -> None:
        """Keep what the surrogate learns of gradients.

        Raises:
            InputError: the storage cannot be written.
        """
        self.set_note(SLOPES, list(slopes))

    def polished(self) -> list[PolishRecord]:
        """The gradient descents from finalists, after the search."""
        return [
            PolishRecord(one["trial"], one["options"], DescentRecord.from_json(one["descent"]))
            for one in self.note(POLISH) or []
        ]

    def set_polished(self, polished: Sequence[PolishRecord]) -> None:
        """Keep how far the polish has come; replaces what was kept.

        Raises:
            InputError: the storage cannot be written.
        """
        self.set_note(POLISH, [asdict(one) for one in polished])

    def known_at_start(self) -> dict[str, list[float]] | None:
        """Digest → genome of what the optimizer was told before its first ask, in this order.

        None: nothing, as its algorithm alone; so began studies that know no such note.
        """
        found = self.note(KNOWN_AT_START)
        return None if found is None else dict(found)

    def set_known_at_start(self, genomes: Mapping[str, list[float]]) -> None:
        """Keep what the optimizer is told before its first ask.

        Raises:
            InputError: the storage cannot be written.
        """
        self.set_note(KNOWN_AT_START, list(genomes.items()))

    @property
    def _where(self) -> str:
        return f"study {self.name!r} in {describe(self._url)}"

    def _adopt(self, identity: dict[str, Any], campaign: dict[str, Any]) -> None:
        """Make the study, or check that the existing one is this campaign's."""
        import optuna

        from evomerge.study.storage import quiet

        try:
            with quiet():
                self._id = self._storage.create_new_study(
                    [optuna.study.StudyDirection.MAXIMIZE], self.name
                )
        except optuna.exceptions.DuplicatedStudyError:
            self._id = self._storage.get_study_id_from_name(self.name)
            self._check_name()
        self._next = self._storage.get_n_trials(self._id)
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
        stamp = {"schema": SCHEMA, "version": __version__}
        self._storage.set_study_user_attr(self._id, "evomerge", stamp)

    def _check_name(self) -> None:
        """Refuse a study whose name differs in case: MySQL finds it, but its lock is another."""
        theirs = self._storage.get_study_name_from_id(self._id)
        if theirs != self.name:
            raise InputError(
                f"{describe(self._url)}: has a study {theirs!r}, which this database does not tell "
                f"from {self.name!r}; use another study.name"
            )

    def _find(self) -> None:
        """Look up the study by its name, and check that this evomerge can read it."""
        try:
            self._id = self._storage.get_study_id_from_name(self.name)
        except KeyError:
            there = [study.study_name for study in self._storage.get_all_studies()]
            found = f"found {', '.join(map(repr, there))}" if there else "found none"
            raise InputError(f"{describe(self._url)}: no study {self.name!r}; {found}") from None
        if not self._is_ours():
            raise self._foreign()

    def _is_ours(self) -> bool:
        """Tell whether evomerge made the study; refuse one that a newer evomerge wrote."""
        stamp = self._storage.get_study_user_attrs(self._id).get("evomerge")
        if stamp is None:
            return False
        if stamp["schema"] > SCHEMA:
            raise InputError(
                f"{self._where} was written by evomerge {stamp['version']}, newer than this "
                f"{__version__}; upgrade evomerge"
            )
        return True

    def _is_blank(self) -> bool:
        """Tell whether the study is unused: new, or its maker was killed while making it."""
        return (
            not self._storage.get_study_user_attrs(self._id)
            and not self._has_trials()
            and [d.name for d in self._storage.get_study_directions(self._id)] == ["MAXIMIZE"]
        )

    def _has_trials(self) -> bool:
        return self._storage.get_n_trials(self._id) > 0

    def _foreign(self) -> InputError:
        return InputError(
            f"{self._where} was not made by evomerge; use another study.name or storage"
        )

    def _user_facts(self) -> dict[str, Any]:
        """The study's attributes that dashboards show."""
        if found := self._attributes.get("user"):
            return found
        found = self._do(lambda: self._storage.get_study_user_attrs(self._id))
        return found

    def _facts(self) -> dict[str, Any]:
        """The study's packed attributes, which dashboards do not show."""
        if found := self._attributes.get("system"):
            return found
        found = self._do(lambda: self._storage.get_study_system_attrs(self._id))
        return found

    def _fact(self, key: str) -> Any:
        try:
            return codec.unpack_json(key, self._facts()) or {}
        except ValueError as error:
            raise InputError(f"{self._where} is damaged ({error})") from error

    def _set_facts(self, packed: Mapping[str, str]) -> None:
        self._do(lambda: self._storage.set_study_system_attrs(self._id, packed))

    def _write(self, trial: FrozenTrial) -> tuple[int, int]:
        """Add the trial; return its id and its number."""
        key = self._storage.create_new_trial(self._id, template_trial=trial)
        return key, self._storage.get_trial_number_from_id(key)

    def _arrived(self, trial: FrozenTrial) -> tuple[int, int] | None:
        """Id and number of the trial if it was added before the connection was lost, or None."""
        for found in self._trials():
            same = (found.user_attrs.get(key) == trial.user_attrs.get(key) for key in OWN)
            if found.number >= self._next and all(same):
                key = self._storage.get_trial_id_from_study_id_trial_number(self._id, found.number)
                return key, found.number
        return None

    def _trials(self) -> list[FrozenTrial | FinishedTrial]:
        found = self._storage.get_all_trials(self._id, deepcopy=False)
        return [trial for trial in found if trial.state.name in FINISHED]

    def _load(self) -> None:
        """Read the trials not seen yet."""
        reader = self._access.reader
        if reader is None:
            for trial in self._do(self._trials):
                if trial.number not in self._seen:
                    self._seen[trial.number] = from_trial(trial)
        else:
            self._parts = self._parts or RecentParts(reader, self._url)
            for facts in self._do(lambda: reader.facts_after(self._id, self._read_to)):
                self._seen[facts.number] = stored(facts, self._parts)
                self._read_to = facts.key
        self._withdrawn = self.note(WITHDRAWN) or {}
        self._loaded = True


def _remedy(task: str, ours: Items, theirs: Items) -> str:
    """Suggest what may help beside a new study; documents dealt to other splits cannot return."""
    searched = set(theirs.get("search", {}).get(task, []))
    moved = any(searched & set(ours[split].get(task, [])) for split in ours if split != "search")
    why = "some that were searched on stand in another split now, for another task has them too; "
    return why if moved else "restore them, or "
