"""Answers to lm-eval's requests, and the interface of whoever gives them.

There is one type of request more than lm-eval's own, `AGREEMENT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from evomerge.common.errors import CandidateError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Group = TypeVar("Group", bound=Hashable)

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


def answered_in_groups(
    requests: Sequence[Instance],
    group: Callable[[Instance], Group],
    answer: Callable[[Group, list[Instance]], list[Response]],
) -> list[Response]:
    """Answer requests group by group, and return the responses in the requests' order.

    Args:
        requests: in any order.
        group: names a request's group.
        answer: answers all requests of a group, in their order.
    """
    places: dict[Group, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(group(request), []).append(place)
    responses: dict[int, Response] = {}
    for key, own in places.items():
        found = answer(key, [requests[place] for place in own])
        responses.update(zip(own, found, strict=True))
    return [responses[place] for place in range(len(requests))]


def check_likelihood(value: Any) -> None:
    """Refuse a log-likelihood, alone or as the first of a tuple, that is not finite.

    Raises:
        CandidateError: it is NaN or infinite.
    """
    likelihood = value[0] if isinstance(value, tuple) else value
    if not math.isfinite(likelihood):
        raise CandidateError(f"a log-likelihood came back as {likelihood}")
