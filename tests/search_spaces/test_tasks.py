"""The tasks beside the campaigns: what they take for an answer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import datasets
import pytest

TASKS = Path(__file__).parents[2] / "search_spaces" / "tasks"


def module(name):
    spec = importlib.util.spec_from_file_location(name, TASKS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("said", "right", "counted"),
    [
        ("りんごは3個と4個で、答えは7です。", True, True),
        ("りんごは３個と４個で、答えは７です。", True, True),
        ("合計は 1,007 ではなく 7.0 円です。", True, True),
        ("答えは7ではなく8です。", False, False),
        ("There are 3 and 4, so the answer is 7.", True, False),
        ("答えは seven, that is to say, the number 7", True, False),
        ("答案是七，也就是7。", True, False),  # kanji alone: Chinese
        ("わかりません。", False, False),
    ],
)
def test_the_last_number_counts_and_only_in_japanese(said, right, counted):
    found = module("ja_math").process_results({"answer_number": 7}, [said])
    assert found == {"acc": float(counted), "acc_any_language": float(right)}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (r"so \boxed{\frac{1}{2}}", True),
        (r"first \boxed{3}, no: \boxed{\frac12}", True),
        (r"\boxed{\frac12}, or rather \boxed{3}", False),
        (r"\boxed{\frac{1}{2}} and then \boxed{unfinished", True),
        ("1/2", False),
        ("", False),
    ],
)
def test_the_last_closed_box_is_the_answer(said, right):
    found = module("boxed").process_results({"answer": r"\frac{1}{2}"}, [said])
    assert found == {"exact_match": float(right)}


def test_pairs_are_split_at_the_last_answer_and_others_left_out():
    asked = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?"
    rows = [
        {"chosen": f"{asked}\n\nAssistant: yes", "rejected": f"{asked}\n\nAssistant: no"},
        {"chosen": f"{asked}\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        {"chosen": f"{asked}\n\nAssistant: yes", "rejected": f"{asked}\n\nAssistant:"},
    ]
    (doc,) = module("hh").process_docs(datasets.Dataset.from_list(rows))
    assert doc["choices"] == ["yes", "no"]
    assert doc["prompt"].endswith("Human: and?\n\nAssistant:")
