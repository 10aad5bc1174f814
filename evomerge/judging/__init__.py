"""Items to decisions, with numpy and scipy only: splits, objectives, intervals, choice.

`scores` has the judge, which sums up a recipe's items; `objectives/` one file an objective;
`constraints` the bounds against parents; `rung_items` and `pruning` successive halving;
`estimators/` the means of items that were not measured; `selection` the choice of the winner, and
`best_of_many` the correction of its score for it; `intervals` intervals of scores, and
`corpus_values` and `resampling` those of scores of a whole corpus;
`paired_tests` leads of one recipe over another, with McNemar's and Student's test and Holm's
correction; `pareto` dominance; `splits` the documents of search, select and test.
"""

from evomerge.judging.answer_facts import AnswerFacts
from evomerge.judging.constraints import Check, Constraints, Items, Values
from evomerge.judging.objectives import Objective, find_objective, objective
from evomerge.judging.scores import Judge, JudgedTask, Scores, build_judge
from evomerge.judging.selection import (
    Judged,
    best,
    by_preference,
    finalists,
    leading,
    parents_last,
)

__all__ = [
    "AnswerFacts",
    "Check",
    "Constraints",
    "Items",
    "Judge",
    "Judged",
    "JudgedTask",
    "Objective",
    "Scores",
    "Values",
    "best",
    "build_judge",
    "by_preference",
    "finalists",
    "find_objective",
    "leading",
    "objective",
    "parents_last",
]
