"""Answers to lm-eval's requests, and the interface of whoever gives them.

There is one type of request more than lm-eval's own, `AGREEMENT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

AGREEMENT = "agreement"
"""The type of request for the share of an expert's next tokens that a model would say, too.

Its arguments are the prompt, the most tokens of an answer, and the expert's answer
(`expert_answers.ExpertAnswer`), which is None before the expert was asked.
"""


class Response(NamedTuple):
    """The response to one request.

    Attributes:
        value: what lm-eval's method of the request's type returns.
        tokens: length of a generated answer, where it was asked for.
        cut: whether the token limit ended it; None where that was not asked for, or is not known.
    """

    value: Any
    tokens: int | None = None
    cut: bool | None = None


class RequestAnswerer(Protocol):
    """Answers lm-eval's requests.

    Attributes:
        lm: lm-eval's own object for the model, from which tasks take chat template and limits.
    """

    lm: Any

    def prepare(self, requests: Sequence[Instance]) -> None:
        """Do once what no candidate changes, such as tokenising.

        Raises:
            InputError: a request cannot be answered, whatever the candidate.
        """

    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        """Answer requests, in their order.

        Args:
            counted: with the lengths of generated answers, and whether they were cut off.

        Raises:
            CandidateError: the candidate cannot answer.
            InputError: a request cannot be answered, whatever the candidate.
        """
