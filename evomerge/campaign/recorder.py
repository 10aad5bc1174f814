"""The recorder: judges what was measured, writes it to the study, and tells who must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evomerge.campaign.candidate import Candidate
from evomerge.campaign.earlier_results import earlier_results
from evomerge.campaign.listener import Listener
from evomerge.campaign.setup import Setup
from evomerge.campaign.snapshots import Snapshots, beginning
from evomerge.config import AUDIT
from evomerge.judging.answer_facts import AnswerFacts
from evomerge.judging.estimators import Estimates
from evomerge.judging.scores import Judge
from evomerge.judging.selection import by_preference
from evomerge.search.descent import finished
from evomerge.search.optimizers import replay
from evomerge.search.spaces.genes import Genome
from evomerge.study.judged import judge_on, judged, known_of, scores_of
from evomerge.study.record import Evaluation, RungProgress
from evomerge.study.study import BEGUN_WITH, Study
from evomerge.workers.worker import PACKAGES


class Recorder:
    """Holds the record so far, and the optimizer that has been told of it.

    Attributes:
        known: (digest, split) → the evaluation on record.
        trials: the optimizer's own, in the order of the tells.
        spent: how many search items these and gradient descents were asked for.
        setup: the campaign's, with the optimizer that is told.
        study: where everything is written.
    """

    def __init__(
        self, setup: Setup, study: Study, listener: Listener, snapshot: Path | None = None
    ) -> None:
        """Replay the record to the set-up's optimizer, which must be a new one.

        `snapshot`: file of its state, from which on the record is replayed; None: from the start.
        """
        assert not setup.optimizer.tells, "the optimizer has been told of another study"
        self.setup, self.study, self._listener = setup, study, listener
        self._versions = {name: version(name) for name in PACKAGES}
        self._judges: dict[str, Judge] = {AUDIT: setup.audit_judge} if setup.audit else {}
        record = study.evaluations()
        self.known: dict[tuple[str, str], Evaluation] = known_of(record)
        self.trials: list[Evaluation] = []
        self.spent = sum(descent.items for descent in study.descents())
        own = [evaluation for evaluation in record if evaluation.optimizers_own]
        self._whole = sum(setup.sizes("search").values())
        if own:  # then every parent is on record
            self.meet_parents("search")
            setup.optimizer.go_on(study.note(BEGUN_WITH) or {})
        judge = self.judge("search")
        self._begin_snapshots(snapshot, record)
        restored = self._snapshots.restore(setup.optimizer, judge, own)
        known = study.known_at_start() if own and not restored else None
        if known is not None:
            replay.learn_earlier(setup.optimizer, study.earlier())
            replay.begin(setup.optimizer, judge, record, known)
        for place, trial in enumerate(own):
            if place >= restored:
                replay.tell(setup.optimizer, judge, trial)
                self._snapshots.told(trial)
            self._count(trial)

    def begin_search(self) -> None:
        """Let an optimizer without trials begin at what was measured, unless it is to be plain.

        What it was told is noted first: a study without the note was begun with nothing.
        """
        if not self.trials:
            self._begin_snapshots(self._snapshot, self.study.evaluations())
            if begun_with := self.setup.optimizer.begun_with():
                self.study.set_note(BEGUN_WITH, begun_with)
        if self.trials or self.setup.config.optimizer.plain:
            return
        known, record = self.study.known_at_start(), self.study.evaluations()
        if known is None:
            found = replay.points(self.setup.space, record)
            known = {digest: genome.tolist() for digest, genome in found.items()}
            if self.setup.config.optimizer.screen > 1:
                earlier = earlier_results(self.setup, self.judge("search"), self._listener)
                if earlier:
                    self.study.set_earlier(replay.earlier_as_json(earlier))
            self.study.set_known_at_start(known)
        replay.learn_earlier(self.setup.optimizer, self.study.earlier())
        replay.begin(self.setup.optimizer, self.judge("search"), record, known)

    def budget_left(self, begun: int = 0, items: int = 0) -> bool:
        """Tell whether there is budget for another trial, beside those that have begun.

        What these will be asked for on higher rungs is not known: items may be overspent by it.

        Args:
            begun: how many trials have begun.
            items: what they are asked for by now.
        """
        budget = self.setup.config.budget
        if len(self.trials) + begun >= budget.trials:
            return False
        return budget.items is None or self.spent + items < budget.items

    def known_by_score(self) -> dict[str, Genome]:
        """Name → genome of parents, default merges and grid, those that the space holds, the best
        on search first.
        """
        record = self.study.evaluations()
        genomes = replay.points(self.setup.space, record)
        beside = [e for e in record if e.split == "search" and e.digest in genomes and e.name]
        ranked = by_preference(judged(self.judge("search"), beside), self.setup.judge.objective)
        return {str(one.trial.name): genomes[one.digest] for one in ranked}

    def judge(self, split: str) -> Judge:
        """Return the judge of a split; until it has met the parents, one that knows none."""
        return self._judges.get(split, self.setup.judge)

    def meet_parents(self, split: str) -> None:
        """Let the judge of a split know the parents' items, once they are on record."""
        self._judges[split] = judge_on(self.setup.judge, self.study.evaluations(), split)

    def repeat(self, candidate: Candidate, known: Evaluation) -> None:
        """Record what is known of the candidate's recipe as the candidate's result too."""
        progress = RungProgress(known.rungs, known.scores)
        self.write(
            candidate, progress, known.asked, known.estimates, known.reason, answers=known.answers
        )

    def write(
        self,
        candidate: Candidate,
        progress: RungProgress,
        asked: int | None = None,
        estimates: Estimates | None = None,
        reason: str | None = None,
        weights: Mapping[str, Any] | None = None,
        answers: Mapping[str, AnswerFacts] | None = None,
    ) -> None:
        """Write a candidate's evaluation, once; then tell the optimizer and the listener.

        Args:
            progress: what was measured.
            asked: with rungs: how many items it was asked for.
            estimates: task → mean of all items and its standard error, if it was pruned.
            reason: why it failed, if it did.
            weights: the record of those that were scored, if there is one.
            answers: task → facts about its generated answers, where they were looked at.
        """
        estimates, proposal = estimates or {}, candidate.proposal
        genome = proposal.genome if proposal else candidate.genome
        descent = finished(candidate.descent) if candidate.descent else None
        judge = self.judge(candidate.split)
        scores = None if reason is not None else scores_of(judge, progress.scores, estimates)
        evaluation = self.study.add(
            Evaluation(
                split=candidate.split,
                digest=candidate.recipe.digest,
                recipe=candidate.recipe.to_json(),
                role=candidate.role,
                name=candidate.name,
                value=scores.value if scores else None,
                se=scores.se if scores else None,
                violation=scores.violation if scores else 0.0,
                n=scores.n if scores else 0,
                estimated=scores.estimated if scores else False,
                estimates=estimates,
                rungs=progress.results,
                asked=asked,
                scores=progress.scores,
                answers=answers or {},
                reason=reason,
                params={} if genome is None else self.setup.space.params(genome),
                genome=genome,
                ask=proposal.ask if proposal else None,
                tells=proposal.tells if proposal else None,
                parents=proposal.parents if proposal else candidate.parents,
                state=self.setup.optimizer.state() if proposal else {},
                attempt=candidate.attempt,
                seconds={
                    **progress.seconds,
                    **({"descent": descent.seconds} if descent else {}),
                },
                versions=self._versions,
                weights=weights,
                descent=descent,
            )
        )
        self.known[candidate.key] = evaluation
        if proposal:
            self._count(evaluation)
            self.setup.optimizer.tell(proposal, scores)
            self._snapshots.told(evaluation)
            self.keep_state(due=True)
        self._listener.recorded(evaluation)

    def keep_state(self, *, due: bool = False) -> None:
        """Write a snapshot of the optimizer's state; `due`: only after many more trials."""
        self._snapshots.write(self.setup.optimizer, self.judge("search"), due=due)

    def _begin_snapshots(self, path: Path | None, record: Sequence[Evaluation]) -> None:
        """Begin the history of a new optimizer, before it is told anything."""
        self._snapshot = path
        begun = beginning(self.setup.identity, self.setup.optimizer, record) if path else ""
        self._snapshots = Snapshots(path, begun)

    def _count(self, trial: Evaluation) -> None:
        self.trials.append(trial)
        self.spent += trial.cost(self._whole)
