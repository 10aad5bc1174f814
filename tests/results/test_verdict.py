"""The verdict: losing, level, winning; before the end; stages, fronts, constraints, few items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evomerge.config import ConstraintConfig, ObjectiveConfig
from evomerge.judging import Judged, JudgedTask, build_judge
from evomerge.judging.paired_tests import compare
from evomerge.results.evidence import Evidence, Rival
from evomerge.results.verdict import verdict_on
from evomerge.results.verdict_words import verdict_lines
from evomerge.study.record import Evaluation

N = 60
SPLITS = ("search", "select", "test")


def right(share, n=N, shift=0):
    """Items of which the first `share`, turned by `shift`, are right."""
    return np.roll((np.arange(n) < round(share * n)) * 1.0, shift)


class Case:
    """A merge, parents and baselines with the items they have right."""

    def __init__(self, tasks=("t",), splits=SPLITS, n=N, objective="mean", constraints=()):
        self.splits, self.n = splits, n
        self.judge = build_judge(
            [JudgedTask(task, 1.0, True) for task in tasks],
            ObjectiveConfig.model_validate(objective),
            [ConstraintConfig.model_validate(one) for one in constraints],
        )
        self.found, self.rivals, self.facts = {}, [], {}

    def add(self, role, name, **shares):
        """`shares`: split → share of the items that are right, or one for each task."""
        for number, split in enumerate(self.splits):
            given = shares.get(split, shares.get("all"))
            if given is None:
                continue
            given = given if isinstance(given, tuple) else (given,) * len(self.judge.tasks)
            items = {t: right(s, self.n) for t, s in zip(self.judge.tasks, given, strict=True)}
            named = None if role == "search" else name
            self.found[name, split] = Evaluation(
                split, name, {}, role=role, name=named, value=0.5, number=number, scores=items
            )
        if role != "search":
            self.rivals.append(Rival(role, name, name, len(self.rivals)))
        return self

    def merge(self, **shares):
        return self.add("search", "merge", **shares)

    def parent(self, name, **shares):
        return self.add("parent", name, **shares)

    def baseline(self, name, **shares):
        return self.add("baseline", name, **shares)

    def verdict(self, best=True, concluded=True):
        judges = {
            split: self.judge.against(
                {
                    e.name: e.scores
                    for (_, on), e in self.found.items()
                    if on == split and e.role == "parent"
                }
            )
            for split in SPLITS
        }

        def lead(ours, theirs, split):
            us, them = (self.found[name, split].scores for name in (ours, theirs))
            return vars(compare(judges[split], us, them))

        front = [
            Judged(e, name, judges["search"].scores(e.scores))
            for (name, split), e in self.found.items()
            if e.role == "search" and split == "search"
        ]
        goals = self.judge.objective.goals is not None
        evidence = Evidence(
            judges, self.found, self.rivals, lead, front=front if goals else [], **self.facts
        )
        trial = self.found["merge", "search"]
        return verdict_on(evidence, trial, best=best, concluded=concluded)


def test_a_lead_on_select_and_a_whole_interval_above_zero_on_test_wins():
    case = Case().merge(all=0.9).parent("math", all=0.5).parent("lang", all=0.6)
    found = case.baseline("average", all=0.7).verdict()
    assert (found.kind, found.final, found.beats, found.parent) == ("wins", True, True, "lang")
    assert found.lead["difference"] == pytest.approx(0.3)
    assert 0 < found.lead["low"] < 0.3 < found.lead["high"]
    assert (found.baseline, found.advice, found.split) == ("average", None, "test")
    assert found.text.startswith("Trial 0 beats the best parent, `lang`, by +.300 [")
    assert "it beats the best baseline, `average`, by +.200 [" in found.text


def test_behind_on_both_splits_no_merge_beats_the_parent_and_what_to_do_is_said():
    found = Case().merge(all=0.4).parent("count", all=0.7).baseline("ties", all=0.3).verdict()
    assert (found.kind, found.final, found.beats, found.parent) == ("loses", True, False, "count")
    assert found.select == pytest.approx({"merge": 0.4, "parent": "count", "score": 0.7})
    assert found.text.startswith("No merge beats `count`: trial 0 is behind it, -.300 [")
    assert ".400 to .700 on select" in found.text
    assert "against the best baseline, `ties`, +.100 [" in found.text
    for help in ("More trials", "other genes", "other experts"):
        assert help in found.advice


def test_a_small_lead_is_level_and_says_how_many_items_would_tell():
    found = Case().merge(all=0.54).parent("math", all=0.5).verdict()
    assert (found.kind, found.beats) == ("level", True)
    assert "Trial 0 is level with the best parent, `math`: its lead of +.0" in found.text
    assert "may be chance" in found.text
    assert "items on test; there are 60" in found.advice


def test_an_equal_merge_is_level_and_no_merge_beats_its_equal():
    found = Case().merge(all=0.5).parent("math", all=0.5).verdict()
    assert (found.kind, found.beats) == ("level", False)
    assert found.preferred == "math"
    assert found.text.startswith("No merge beats `math`: trial 0 is level with it, +.000 [")


def test_as_many_right_answers_are_equal_however_they_are_summed():
    case = Case(tasks=("a", "b", "c"), n=30)
    case.merge(all=(0.6, 0.6, 0.1)).parent("math", all=(0.1, 0.6, 0.6))
    assert not case.verdict().beats
    assert case.verdict().preferred == "math"


def test_the_choice_falls_on_select_though_test_says_otherwise():
    case = Case().merge(search=0.9, select=0.5, test=0.9)
    found = case.parent("math", search=0.5, select=0.6, test=0.5).verdict()
    assert (found.kind, found.beats, found.preferred) == ("level", False, "math")
    assert found.advice.startswith("The best found is `math` itself: keep it (--trial 0 exports it")
    assert "No merge beats `math` on select, where the choice is made (.500 to .600)" in found.text
    assert "though trial 0 leads it by +.400 [" in found.text


def test_a_merge_that_is_ahead_on_select_and_behind_on_test_has_no_lead():
    case = Case().merge(search=0.9, select=0.9, test=0.5)
    found = case.parent("math", search=0.5, select=0.6, test=0.55).verdict()
    assert (found.beats, found.preferred) == (False, None)
    assert found.advice.startswith("More trials")
    assert found.text.startswith("No merge beats `math`: trial 0 is ")
    assert "on select" not in found.text


def test_the_best_found_is_the_best_parent_on_select_whatever_test_says():
    case = Case().merge(all=0.5).parent("math", search=0.5, select=0.7, test=0.5)
    found = case.parent("lang", search=0.5, select=0.6, test=0.8).verdict()
    assert (found.parent, found.preferred) == ("lang", "math")


def test_another_parent_that_is_better_on_test_is_named_too():
    case = Case().merge(search=0.5, select=0.5, test=0.5)
    case.parent("math", search=0.5, select=0.6, test=0.4)
    found = case.parent("lang", search=0.3, select=0.3, test=0.8).verdict()
    assert (found.parent, found.beats) == ("math", False)
    assert "The best parent on test is another, `lang`" in found.notes[0]


def test_a_default_merge_that_is_ahead_on_both_splits_takes_its_place():
    case = Case().merge(all=0.7).parent("math", all=0.3)
    found = case.baseline("average", all=0.1).baseline("ties", all=0.8).verdict()
    assert (found.kind, found.beats) == ("wins", False)
    assert "but the default merge `ties` is first on select: -.100" in found.text
    assert "--trial 2" in found.advice


def test_a_default_merge_that_beats_the_parents_where_the_search_does_not_is_said():
    case = Case().merge(all=0.3).parent("math", all=0.5)
    found = case.baseline("ties", all=0.8).verdict()
    assert (found.kind, found.beats) == ("loses", False)
    assert found.text.startswith("No merge of the search beats `math`: trial 0 is behind it")
    assert "--trial 1" in found.advice
    behind = Case().merge(all=0.3).parent("math", all=0.9).baseline("ties", all=0.8).verdict()
    assert behind.text.startswith("No merge beats `math`")
    assert "keep it (--trial 0 exports it)" in behind.advice
    assert (found.preferred, behind.preferred) == (None, "math")


@pytest.mark.parametrize(("share", "said"), [(0.9, "leads the best parent"), (0.3, "no merge")])
def test_before_the_end_it_is_the_best_so_far_and_proves_nothing(share, said):
    case = Case(splits=("search",)).merge(all=share).parent("base", all=0.5)
    found = case.verdict(concluded=False)
    assert (found.final, found.split, found.select) == (False, "search", None)
    assert found.kind != "wins"
    assert found.beats is (share > 0.5)
    assert found.text.startswith("Best so far: ")
    assert said in found.text
    assert found.advice is None


def test_a_campaign_extended_after_its_test_is_not_at_its_end():
    found = Case().merge(all=0.9).parent("math", all=0.5).verdict(concluded=False)
    assert not found.final
    assert found.text.startswith("Best so far: trial 0")


def test_any_other_trial_is_judged_without_being_called_the_best():
    case = Case(splits=("search",)).merge(all=0.3).parent("base", all=0.5)
    found = case.verdict(best=False)
    assert found.text.startswith("Trial 0 does not beat `base`: ")
    assert not found.final


def test_what_was_not_measured_on_all_items_has_no_verdict():
    case = Case(splits=("search",)).merge(all=0.3)
    trial = replace(case.found.pop(("merge", "search")), digest="pruned")
    evidence = Evidence({}, {}, [], lambda *_: {})
    assert verdict_on(evidence, trial) is None


# Agreement with experts


def test_several_experts_are_said_to_be_no_judges_of_what_is_right():
    case = Case().merge(all=0.9).parent("math", all=0.6).parent("lang", all=0.5)
    case.facts = {"agreements": {"sums": "math", "words": "lang"}}
    found = case.verdict()
    assert found.kind == "wins"
    assert found.notes == [
        "Agreement with an expert is no accuracy: `math` scores 1 on sums and `lang` scores 1 on "
        "words, whatever is right, and no merge scores more there."
    ]


def test_where_one_expert_is_the_measure_no_search_is_advised():
    case = Case().merge(all=0.9).parent("math", all=1.0)
    case.facts = {"agreements": {"sums": "math"}, "capped": "math"}
    found = case.verdict()
    assert not found.beats
    assert "no merge can beat it" in found.notes[-1]
    assert found.advice == (
        "To find a merge that is more than a copy, add prompts of another expert, or a task."
    )


# Stages


def staged(flow, blend, parent=0.4):
    case = Case().merge(all=flow).parent("math", all=parent).parent("blend", all=blend)
    case.facts = {"stage": "flow", "before": [{"stage": "blend", "select": blend}]}
    return case


def test_a_later_stage_that_is_no_better_does_not_replace_an_earlier_one():
    found = staged(flow=0.5, blend=0.8).verdict()
    assert found.stage == {"stage": "blend", "trial": 1}
    assert (found.kind, found.beats, found.parent) == ("wins", True, "math")
    assert found.lead["difference"] == pytest.approx(0.4)
    assert found.text.startswith(
        "Stage `blend` stays the result: trial 0 of stage `flow` is no better than it on select "
        "(.500 to .800); `blend` beats the best parent, `math`, by +.400 ["
    )


def test_a_stage_that_stays_and_is_behind_a_parent_beats_none_either():
    found = staged(flow=0.2, blend=0.3).verdict()
    assert (found.kind, found.beats) == ("loses", False)
    assert "no merge beats `math`: `blend` is behind it" in found.text


def test_a_later_stage_that_is_better_is_judged_against_the_models_and_not_the_stages():
    found = staged(flow=0.9, blend=0.8).verdict()
    assert (found.stage, found.parent, found.kind) == (None, "math", "wins")


def test_an_earlier_path_that_is_no_model_is_said_to_be_a_run_of_its_own():
    case = staged(flow=0.5, blend=0.8)
    case.rivals.pop()
    found = case.verdict()
    assert (found.kind, found.beats, found.stage) == (
        "loses",
        False,
        {"stage": "blend", "trial": None},
    )
    assert "its folder, blend, is a run" in found.advice


# Constraints


KEEP_A = {"not_below": {"model": "math", "task": "a", "by": 0.05}}


def test_a_parent_that_breaks_a_constraint_is_no_rival_and_this_is_said():
    case = Case(tasks=("a", "b"), constraints=[KEEP_A])
    case.merge(all=(0.8, 0.6)).parent("math", all=(0.8, 0.1)).parent("lang", all=(0.1, 1.0))
    found = case.verdict()
    assert (found.excluded, found.parent, found.beats) == (["lang"], "math", True)
    assert found.notes == ["`lang` breaks a constraint on select, and is no rival."]


def test_a_merge_that_breaks_a_constraint_beats_no_parent_that_keeps_it():
    case = Case(tasks=("a", "b"), constraints=[KEEP_A])
    found = case.merge(all=(0.5, 1.0)).parent("math", all=(0.8, 0.1)).verdict()
    assert not found.beats
    assert found.text.startswith(
        "No merge beats `math`: trial 0 breaks a constraint that `math` keeps"
    )


# Fronts


PARETO = {"kind": "pareto", "of": ["a", "b"]}


def fronted(merge, *parents):
    case = Case(tasks=("a", "b"), objective=PARETO).merge(all=merge)
    for place, shares in enumerate(parents):
        case.parent(f"p{place}", all=shares)
    return case


def test_a_front_whose_preferred_member_dominates_every_parent_wins():
    found = fronted((0.9, 0.9), (0.5, 0.2), (0.2, 0.5)).verdict()
    assert (found.kind, found.beats) == ("wins", True)
    assert found.front["dominated"] == {"p0": [0], "p1": [0]}
    assert found.text.startswith("1 of the front's 1 merges (trial 0) beats every parent")


def test_a_front_that_adds_a_compromise_is_level():
    found = fronted((0.5, 0.5), (0.9, 0.1), (0.1, 0.9)).verdict()
    assert (found.kind, found.beats) == ("level", True)
    assert found.front["ahead"] == [0]
    assert "none dominates one" in found.text


def test_a_front_that_a_parent_dominates_loses():
    found = fronted((0.4, 0.4), (0.5, 0.4), (0.1, 0.9)).verdict()
    assert (found.kind, found.beats, found.front["ahead"]) == ("loses", False, [])
    assert found.text.startswith("No merge beats the parents: each of the front's 1 is matched")


def test_of_a_front_the_members_that_are_not_matched_are_named():
    case = fronted((0.4, 0.4), (0.5, 0.4)).add("search", "other", search=(0.1, 0.9))
    case.found["other", "select"] = replace(case.found["other", "search"], split="select", number=7)
    case.found["other", "search"] = replace(case.found["other", "search"], number=7)
    found = case.verdict()
    assert (found.kind, found.beats, found.front["ahead"]) == ("level", False, [7])
    assert "export trial 7 instead" in found.advice


# Few items, and tasks that fall


def test_a_few_items_tell_nothing():
    found = Case(n=10).merge(all=1.0).parent("math", all=0.0).verdict()
    assert (found.kind, found.beats, found.items) == ("level", True, 10)
    assert found.notes == ["10 items on test: too few to tell a lead from chance."]


def test_one_document_tells_nothing():
    found = Case(n=1).merge(all=1.0).parent("math", all=0.0).verdict()
    assert (found.kind, found.items) == ("level", 1)
    assert found.lead["low"] < 0 < found.lead["high"]
    assert found.notes == ["1 item on test: too few to tell a lead from chance."]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_task_whose_items_all_agree_is_level_and_not_certain(share):
    found = Case().merge(all=share).parent("math", all=share).verdict()
    assert (found.kind, found.beats) == ("level", False)
    assert found.lead["low"] < 0 < found.lead["high"]


def test_a_task_on_which_it_falls_to_nothing_is_said():
    case = Case(tasks=("a", "b")).merge(all=(1.0, 0.02)).parent("math", all=(0.1, 0.8))
    found = case.parent("lang", all=(0.3, 0.5)).verdict()
    assert found.fallen == [
        {
            "task": "b",
            "merge": pytest.approx(1 / 60),
            "parent": "math",
            "score": pytest.approx(0.8),
        }
    ]
    assert "On b it falls to .017, where `math` has .800." in verdict_lines(vars(found))


def test_a_task_that_no_parent_can_do_has_not_fallen():
    assert (
        Case(tasks=("a", "b")).merge(all=(1.0, 0.0)).parent("p", all=(0.1, 0)).verdict().fallen
        == []
    )
