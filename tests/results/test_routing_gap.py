"""The oracle routing gap, on invented scores."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.config import ObjectiveConfig
from evomerge.judging import JudgedTask, build_judge
from evomerge.judging.corpus_values import CorpusValues
from evomerge.report.tables import remarks
from evomerge.results.routing_gap import routing_gap, routing_line
from evomerge.study.record import Evaluation

ITEMS = 40


def judge_of(*tasks):
    return build_judge(
        [JudgedTask(name, weight, up) for name, weight, up in tasks],
        ObjectiveConfig(kind="weakest_link"),
        [],
    )


def scored(name, split="test", **tasks):
    """An evaluation with the places of the items that are right, task by task, or with scores."""
    scores = {
        task: np.isin(np.arange(ITEMS), given) * 1.0 if isinstance(given, range) else given
        for task, given in tasks.items()
    }
    role = "finalist" if name == "ours" else "parent"
    return Evaluation(split, name, {}, role=role, name=name, value=0.5, scores=scores)


def test_the_oracle_takes_for_each_document_the_parent_that_is_best_on_it():
    judge = judge_of(("t", 1.0, True))
    parents = [scored("a", t=range(0, 16)), scored("b", t=range(12, 30))]
    found = routing_gap(judge, [scored("ours", t=range(0, 20)), *parents], "ours")
    assert (found["oracle"], found["winner"]) == (30 / ITEMS, 20 / ITEMS)
    assert found["difference"] == pytest.approx(10 / ITEMS)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert (found["split"], found["items"], found["parents"]) == ("test", ITEMS, ["a", "b"])
    assert "routing could give at most +.250 [" in routing_line(found)


def test_a_merge_may_be_better_than_any_choice_among_its_parents():
    judge = judge_of(("t", 1.0, True))
    parents = [scored("a", t=range(0, 4)), scored("b", t=range(2, 8))]
    found = routing_gap(judge, [scored("ours", t=range(0, 36)), *parents], "ours")
    assert found["high"] < 0
    assert routing_line(found, "best merge").endswith("no choice among the parents reaches it.")
    alike = routing_gap(judge, [scored("ours", t=range(1, 9)), *parents], "ours")
    assert "nothing that routing could give" in routing_line(alike)


def test_tasks_count_by_weight_and_in_their_metrics_direction():
    judge = judge_of(("up", 3.0, True), ("down", 1.0, False), ("beside", 0.0, True))
    low, high = np.full(ITEMS, 2.0), np.full(ITEMS, 5.0)
    low[:4] = 6.0
    evaluations = [
        scored("ours", up=range(0, 10), down=high, beside=range(0)),
        scored("a", up=range(0, 10), down=low, beside=range(0, 40)),
        scored("b", up=range(5, 20), down=high, beside=range(0)),
    ]
    found = routing_gap(judge, evaluations, "ours")
    assert found["tasks"].keys() == {"up", "down"}
    assert found["tasks"]["down"]["oracle"] == pytest.approx((4 * 5 + 36 * 2) / ITEMS)
    assert found["tasks"]["down"]["difference"] == pytest.approx(36 * 3 / ITEMS)
    assert found["difference"] == pytest.approx(0.75 * 10 / ITEMS + 0.25 * 36 * 3 / ITEMS)


def test_select_stands_in_until_test_is_open_and_one_parent_is_no_choice():
    judge = judge_of(("t", 1.0, True))
    ours = scored("ours", split="select", t=range(0, 20))
    parents = [scored(name, split="select", t=range(0, 9)) for name in "ab"]
    assert routing_gap(judge, [ours, *parents], "ours")["split"] == "select"
    assert routing_gap(judge, [ours, parents[0]], "ours") is None
    assert routing_gap(judge, parents, "ours") is None


def test_scores_of_a_whole_corpus_are_left_out_by_name():
    judge = judge_of(("t", 1.0, True), ("corpus", 1.0, True))
    corpus = CorpusValues.of("f1", np.ones((ITEMS, 3)))
    evaluations = [scored(n, t=range(0, 9), corpus=corpus) for n in ("ours", "a", "b")]
    found = routing_gap(judge, evaluations, "ours")
    assert (found["left_out"], list(found["tasks"])) == (["corpus"], ["t"])


def test_best_and_its_table_have_the_gap(finished):
    best = finished.results.best()
    assert best["routing"]["split"] == "test"
    assert any(line.startswith("Asking for each document the parent") for line in remarks(best))
