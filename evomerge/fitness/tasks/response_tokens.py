"""Count response tokens: the length of an answer, up to where lm-eval ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lm_eval.models.huggingface as huggingface
from lm_eval.models.huggingface import HFLM

RESPONSE_TOKENS = "response_tokens"
"""A metric that every generation task has beside its own: tokens of an answer, fewer is better."""
CUT_OFF = "cut_off"
"""Names, beside what filters make of an answer, whether the token limit ended it."""


@contextmanager
def counted_responses(lm: HFLM) -> Iterator[list[tuple[int, bool]]]:
    """Inside the block, `generate_until` finds each answer's end, in its requests' order.

    A row of a batch runs on until the batch's last row has stopped, and the text is cut afterwards;
    what is counted ends where this row alone would have stopped (see `response_end`).
    """
    lengths: list[tuple[int, bool]] = []
    in_batches: list[tuple[int, bool]] = []
    order: list[Any] = []
    collator, generate, answer = huggingface.Collator, lm._model_generate, lm.generate_until

    def remember(*args: Any, **kwargs: Any) -> Any:
        order.append(collator(*args, **kwargs))
        return order[-1]

    def count(context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        rows = generate(context=context, max_length=max_length, stop=stop, **kwargs)
        for row in rows[:, context.shape[1] :].tolist():
            in_batches.append(response_end(lm, row, stop))
        return rows

    def answered(requests: Sequence[Any], **kwargs: Any) -> list[str]:
        in_batches.clear()
        texts = answer(requests, **kwargs)
        # The collator alone knows which request a row of a batch was.
        lengths.extend(order[-1].get_original(in_batches))
        return texts

    huggingface.Collator = remember
    lm._model_generate, lm.generate_until = count, answered
    try:
        yield lengths
    finally:
        huggingface.Collator = collator
        del lm._model_generate, lm.generate_until


def response_end(lm: HFLM, tokens: Sequence[int], stop: Sequence[str]) -> tuple[int, bool]:
    """Count the tokens up to and including the one at which lm-eval stops.

    That is the first end-of-sequence token (the tokenizer's or one of the model's), or the token
    that completes a stop string, as lm-eval's stopping criterion sees it: special tokens are text.
    An answer that nothing stops counts whole, and was cut off by the token limit.

    Args:
        tokens: what was generated for one request, padding after its end included.
        stop: the stop strings.

    Returns:
        the length, and whether the limit ended it.
    """
    ends = end_tokens(lm)
    ended = next((i for i, token in enumerate(tokens, 1) if token in ends), None)
    length = len(tokens) if ended is None else ended

    # The shortest beginning whose text holds a stop string, by bisection.
    def stopped(count: int) -> bool:
        text = lm.tokenizer.decode(tokens[:count], skip_special_tokens=False)
        return any(string in text for string in stop if string)

    if not stopped(length):
        return length, ended is None
    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if stopped(middle) else (middle + 1, high)
    return low, False


def end_tokens(lm: HFLM) -> set[int]:
    """Find the tokens that end an answer: the tokenizer's end of sequence, and the model's."""
    of_model = getattr(lm.model.generation_config, "eos_token_id", None)
    listed = of_model if isinstance(of_model, list) else [of_model]
    return {token for token in (*listed, lm.eot_token_id) if token is not None}
