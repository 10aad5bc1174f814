"""Facts about generated answers beside their scores: how long, cut off or not, readable or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class AnswerFacts:
    """One number for each item of a task, in the order of its scores; NaN where it is not known.

    Of an item whose question is asked several times, the length is the mean over the answers, and
    one answer that was cut off, or could not be parsed, counts for the item.

    Attributes:
        tokens: float64 [items], length of the answer, what ended it included.
        cut: float64 [items], 1 where the token limit ended the answer, 0 where it ended by itself.
        unparsed: float64 [items], 1 where the task's filter found no answer in the text, else 0.
    """

    tokens: np.ndarray
    cut: np.ndarray
    unparsed: np.ndarray

    @classmethod
    def unknown(cls, items: int) -> AnswerFacts:
        """Return facts of which none is known."""
        return cls(*(np.full(items, np.nan) for _ in range(3)))
