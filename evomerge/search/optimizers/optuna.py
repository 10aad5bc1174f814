"""Optuna's samplers as optimizers: `optuna:TPESampler` and its kin, over a study in memory.

The study is fed from asks and tells alone. A fresh sampler, seeded by (seed, ask index), answers
each ask, so that nothing is remembered outside the study, and a replay rebuilds that.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Known, Optimizer, Proposal, ask_index, optimizer
from evomerge.search.spaces.genes import Domain, Gene, Genome, Value

NO_MEMORY = ("TPESampler", "GPSampler", "RandomSampler", "BruteForceSampler")
"""Samplers that leave no notes in the study: a trial that was asked for in an earlier run is only
written down. For the others the ask is repeated, which writes the notes again."""

NUMBERS_ONLY = ("CmaEsSampler", "QMCSampler")
"""Samplers that would silently draw categorical genes at random."""

FIXED_SPACE_ONLY = ("CmaEsSampler",)
"""Samplers that would silently go random where the active genes change from trial to trial."""

ONE_OBJECTIVE = ("CmaEsSampler",)

NOT_FROM_A_FILE = ("GridSampler", "PartialFixedSampler")
"""Samplers whose constructor needs what a campaign file cannot give; BruteForceSampler goes through
a grid."""

OPTION_TYPES: Mapping[str, Any] = {
    plain.__name__ + optional: plain | None if optional else plain
    for plain in (bool, int, float, str)
    for optional in ("", " | None")
}
"""The annotations of constructor arguments that a campaign file can give."""


class OptunaOptimizer(Optimizer):
    """One Optuna sampler.

    Float genes are sampled on [0, 1] as they stand in the genome, which a logarithm has already
    bent: the study's values then come back from the record exactly. Ints and categoricals are
    sampled in their natural values, inactive genes not at all (they keep the domain's initial
    entry). Proposals in flight are running trials, as in any Optuna study, so that samplers with a
    constant liar keep away from them.

    With more than one objective in the scores the study maximises them all; with one it maximises
    the value. Samplers that know constraints are told the violation, the others the fitness.
    """

    sampler: ClassVar[type[BaseSampler]]

    def __init__(self, domain: Domain, seed: int, **options: Any) -> None:
        """`options`: keyword arguments of the sampler's constructor.

        Raises:
            InputError: the sampler refuses its options, needs a package that is not installed, or
                cannot search this domain.
        """
        super().__init__(domain, seed)
        self._name = self.sampler.__name__
        arguments = _arguments(self.sampler)
        self._constrains = "constraints_func" in arguments
        # of what cannot be helped, Optuna need not warn at every ask
        warns = [k for k, p in arguments.items() if k.startswith("warn_") and p.default is True]
        self._options = dict.fromkeys(warns, False) | options
        self._known: Sequence[Known] = ()
        self._history: list[tuple[Proposal, Scores | None]] = []
        self._pending: dict[int, tuple[Trial, Genome]] = {}
        self._objectives, self._constrained = 1, False
        self._check_space()
        self._new_study()
        self._rehearse()

    @override
    def check_goals(self, count: int) -> None:
        if count > 1 and self._name in ONE_OBJECTIVE:
            raise InputError(
                f"optimizer.kind: {self._name} takes one objective, but the campaign has "
                f"{count}; use 'nsga2' or 'optuna:TPESampler'"
            )

    @override
    def check_screening(self) -> None:
        """Refuse: whatever a sampler is asked becomes a trial of its study."""
        raise InputError(
            f"optimizer.screen: {self._name} cannot be screened, as it counts on the trial of "
            "everything it is asked; use one of evomerge's own, such as 'cma'"
        )

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        """Make what is known the study's first trials."""
        self._known = known
        for one in known:
            self._widens(one.scores)
        self._new_study()

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        index = ask_index(rng)
        if index not in self._pending:
            self._pending[index] = self._ask(self._new_sampler(index))
        return self._pending[index][1].copy(), ()

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        self._history.append((proposal, scores))
        if scores is not None and self._widens(scores):
            # what was told before is told again to a study of the right shape
            self._new_study()
            self._pending.clear()
            for earlier in self._history:
                self._record(*earlier)
        else:
            self._record(proposal, scores)

    def _widens(self, scores: Scores) -> bool:
        """Note objectives or constraints that the study lacks; return whether there are any."""
        before = self._objectives, self._constrained
        self._objectives = max(self._objectives, len(scores.objectives))
        self._constrained |= self._constrains and scores.violation > 0
        self.check_goals(self._objectives)
        return (self._objectives, self._constrained) != before

    def _record(self, proposal: Proposal, scores: Scores | None) -> None:
        """Finish the proposal's trial; when it was asked for in another run, make it first."""
        pending = self._pending.pop(proposal.ask, None)
        trial = pending[0] if pending else self._again(proposal)
        self._study.sampler = self._new_sampler(proposal.ask)
        if scores is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._finish(trial, scores)

    def _finish(self, trial: Trial, scores: Scores) -> None:
        if self._constrained:
            trial.set_constraint("violation", max(0.0, scores.violation))
        if self._objectives > 1:
            self._study.tell(trial, list(scores.objectives))
        else:
            self._study.tell(trial, scores.value if self._constrained else scores.fitness)

    def _again(self, proposal: Proposal) -> Trial:
        """Make the proposal a running trial with the recorded values."""
        self._study.enqueue_trial(self._sampled(proposal.genome))
        memory = self._name not in NO_MEMORY
        trial, _ = self._ask(self._new_sampler(proposal.ask) if memory else RandomSampler(seed=0))
        return trial

    def _ask(self, sampler: BaseSampler) -> tuple[Trial, Genome]:
        """A new running trial and its genome, gene by gene: inactive genes are not asked for."""
        self._study.sampler = sampler
        trial = self._study.ask()
        _ = trial.relative_params  # drawn on demand otherwise, and with fixed values never
        genome = np.array(self.domain.initial, dtype=np.float64)
        active: dict[str, Value] = {}
        for i, gene in enumerate(self.domain.genes):
            if gene.exists(active):
                genome[i] = _suggest(trial, gene)
                active[gene.name] = gene.value(genome[i])
        return trial, genome

    def _sampled(self, genome: Genome) -> dict[str, Any]:
        """Convert a genome to the study's params: active genes only."""
        sampled: dict[str, Any] = dict(self.domain.params(genome))
        for gene, unit in zip(self.domain.genes, genome, strict=True):
            if gene.kind == "float" and gene.name in sampled:
                sampled[gene.name] = min(1.0, max(0.0, float(unit)))
        return sampled

    def _new_sampler(self, index: int) -> BaseSampler:
        """Make the sampler for one ask; a quasi-random sequence has one seed for the campaign."""
        key = 0 if issubclass(self.sampler, QMCSampler) else index
        seed = int(self._random(key).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self.sampler(seed=seed, **self._options)  # type: ignore[call-arg]

    def _new_study(self) -> None:
        """Begin a study in memory, with a finished trial for everything that is known."""
        storage = optuna.storages.InMemoryStorage()
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
        try:
            storage.create_new_study([StudyDirection.MAXIMIZE] * self._objectives, "tells")
        finally:
            optuna.logging.set_verbosity(verbosity)
        plain = RandomSampler(seed=0)
        self._study = _Endless(study_name="tells", storage=storage, sampler=plain)
        for one in self._known:
            self._study.enqueue_trial(self._sampled(one.genome))
            self._finish(self._ask(plain)[0], one.scores)

    def _check_space(self) -> None:
        """Refuse genes that Optuna would warn of, and then sample at random."""
        choices = [gene.name for gene in self.domain.genes if gene.kind == "categorical"]
        conditional = [gene.name for gene in self.domain.genes if gene.when]
        for names, what, refuse in (
            (choices, "categorical", NUMBERS_ONLY),
            (conditional, "conditional", FIXED_SPACE_ONLY),
        ):
            if names and self._name in refuse:
                raise InputError(
                    f"optimizer.kind: {self._name} cannot search {what} genes such as "
                    f"{names[0]!r}; use 'cma' or 'optuna:TPESampler'"
                )

    def _rehearse(self) -> None:
        """Ask and tell twice in a study that is thrown away, to find what the sampler refuses."""
        try:
            for index in range(2):
                trial, _ = self._ask(self._new_sampler(index))
                self._study.tell(trial, float(index))
        except ImportError as error:
            package = error.name or str(error)
            raise InputError(
                f"optimizer.kind: {self._name} needs a package that is not installed ({package}); "
                f"pip install {error.name or 'it'}"
            ) from error
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InputError(f"optimizer.kind: {self._name} refuses: {error}") from error
        self._new_study()


class _Endless(optuna.Study):
    """A study that the campaign's budget ends, not a sampler that has seen everything."""

    def stop(self) -> None:
        """Go on."""


def _suggest(trial: Trial, gene: Gene) -> float:
    """The sampled value as a genome's entry."""
    if gene.kind == "float":
        return trial.suggest_float(gene.name, 0.0, 1.0)
    if gene.kind == "int":
        return gene.unit(trial.suggest_int(gene.name, int(gene.low), int(gene.high)))
    chosen = trial.suggest_categorical(gene.name, gene.choices)
    assert chosen is not None
    return gene.unit(chosen)


def _arguments(sampler: Callable[..., BaseSampler]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(sampler).parameters


def _summary(sampler: type[BaseSampler]) -> str:
    """The first sentence of its docstring, links reduced to their text."""
    text = re.sub(r"`([^<`]+) <[^>]*>`_*", r"\1", inspect.getdoc(sampler) or "")
    sentence = re.split(r"\.(?:\s|$)", text)[0]
    return f"{' '.join(sentence.split())} (Optuna)."


def _register(sampler: type[BaseSampler]) -> None:
    """Make `optuna:<Sampler>` an optimizer whose options are the constructor's plain arguments."""
    parameters = [
        p.replace(annotation=OPTION_TYPES[p.annotation], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in _arguments(sampler).items()
        if name != "seed" and not name.startswith("warn_") and p.annotation in OPTION_TYPES
    ]
    members = {
        "__doc__": _summary(sampler),
        "__signature__": inspect.Signature(parameters),
        "sampler": sampler,
    }
    optimizer(f"optuna:{sampler.__name__}")(type(sampler.__name__, (OptunaOptimizer,), members))


def _samplers() -> Iterator[type[BaseSampler]]:
    for name in optuna.samplers.__all__:
        found = getattr(optuna.samplers, name)
        if name.startswith("Base") or name in NOT_FROM_A_FILE or not inspect.isclass(found):
            continue
        if issubclass(found, BaseSampler):
            yield found


for _sampler in _samplers():
    _register(_sampler)
