"""A metric of your own, for `own_metric.yaml`: how likely the model thinks the better answer is.

`preference(model, tokenizer, items)` gets the transformers model with the candidate's weights, its
tokenizer, and some of the documents, and returns one number for each of them. An item's number may
depend on nothing but the item and the model: items are scored in any company and order.
"""

from __future__ import annotations

from typing import Any

import torch


def preference(model: Any, tokenizer: Any, items: list[dict[str, str]]) -> list[float]:
    """The log-likelihood of the better answer over that of the worse one."""
    return [
        loglikelihood(model, tokenizer, item["prompt"], item["better"])
        - loglikelihood(model, tokenizer, item["prompt"], item["worse"])
        for item in items
    ]


def loglikelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Of an answer's tokens after the prompt, in sum."""
    start = len(tokenizer.encode(prompt))
    tokens = torch.tensor([tokenizer.encode(prompt + answer)], device=model.device)
    logprobs = model(tokens).logits[0, start - 1 : -1].float().log_softmax(-1)
    return float(logprobs.gather(1, tokens[0, start:, None]).sum())
