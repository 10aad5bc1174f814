"""The audit's numbers and its line, on invented answers."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.config import ObjectiveConfig
from evomerge.judging import AnswerFacts, JudgedTask, build_judge
from evomerge.results.audit import audit, audit_rows
from evomerge.study.record import Evaluation

JUDGE = build_judge([JudgedTask("t", 1.0, True)], ObjectiveConfig(kind="mean"), [])


def scored(name, right, cut=(), unparsed=(), split="test"):
    """A recipe's evaluation on ten items; the places of those right, cut off and unparsed."""
    flags = {
        key: np.isin(np.arange(10), places) * 1.0
        for key, places in {"right": right, "cut": cut, "unparsed": unparsed}.items()
    }
    facts = AnswerFacts(np.full(10, 5.0), flags["cut"], flags["unparsed"])
    return Evaluation(
        split,
        name,
        {},
        role="parent" if name != "ours" else "finalist",
        name=name,
        value=0.5,
        scores={"t": flags["right"]},
        answers={"t": facts},
    )


def found(*evaluations, **more):
    return audit(JUDGE, evaluations, "ours", **more)


def test_half_of_a_gain_may_be_truncation():
    got = found(scored("ours", range(8)), scored("base", range(4), cut=(4, 5)))
    assert got["gains"]["base"]["cut"] == pytest.approx(0.5)
    assert got["gains"]["base"]["uncut"]["difference"] == pytest.approx(2 / 8)
    assert got["verdict"].startswith("Half (50%) of the gain is truncation of the parent")


def test_answers_that_no_filter_reads_are_told_apart_from_those_cut_off():
    got = found(scored("ours", range(8)), scored("base", range(4), unparsed=(4, 5, 6, 7)))
    assert got["gains"]["base"] | {"unparsed": 1.0, "cut": 0.0} == got["gains"]["base"]
    assert got["verdict"].startswith("All of the gain is parsing of the parent")


def test_the_gain_that_counts_is_that_over_the_best_parent():
    weak = scored("weak", [0], cut=range(1, 10))
    got = found(scored("ours", range(8)), weak, scored("best", range(6)))
    assert got["against"] == "best"
    assert "gain" not in got["verdict"]
    assert "cut off at the token limit: `weak` 90% of t" in got["verdict"]


def test_a_task_whose_items_all_agree_is_not_enough():
    got = found(scored("ours", range(8)), scored("base", range(8)))
    assert got["gains"]["base"]["tasks"]["t"] == {
        "won": 0,
        "lost": 0,
        "alike": 10,
        "enough": False,
    }
    assert (got["gains"]["base"]["cut"], got["verdict"]) == (None, None)
    assert [row["model"] for row in audit_rows(got)] == ["winner", "base"]


def test_without_two_documents_left_it_is_said():
    got = found(scored("ours", range(8)), scored("base", [], cut=range(10)))
    assert "Not enough documents are left" in got["verdict"]


def test_studies_without_facts_about_answers_have_their_losses_only():
    ours, base = scored("ours", range(8)), scored("base", [*range(4), 9])
    for one in (ours, base):
        one.answers.clear()
    got = found(ours, base)
    gain = got["gains"]["base"]
    assert (gain["cut"], gain["unparsed"], gain["uncut"], got["verdict"]) == (None,) * 4
    assert (gain["tasks"]["t"]["won"], gain["tasks"]["t"]["lost"]) == (4, 1)


def test_near_copies_are_told_from_one_in_a_hundred_on():
    parents = scored("ours", range(8)), scored("base", range(8))
    few = {"test": 300, "exact": 0, "near": 3, "example": "what is"}
    assert found(*parents, overlap=few)["verdict"] is None
    assert "12 of 300 test documents" in found(*parents, overlap=few | {"near": 12})["verdict"]


def test_select_stands_in_until_test_is_open():
    on_select = [scored(name, range(8), split="select") for name in ("ours", "base")]
    assert found(*on_select)["split"] == "select"
    assert found(scored("base", range(8))) is None
