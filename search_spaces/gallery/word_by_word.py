"""A metric of your own, for `own-metric.yaml`: the share of an answer's words that are right.

lm-eval's `acc` counts an answer as right or wrong. This function gives credit for a part: a model
that puts three of four words in their places scores .75.
"""

from __future__ import annotations

from typing import Any

import torch


def right_words(model: Any, tokenizer: Any, items: list[dict[str, Any]]) -> list[float]:
    """Return each item's share of answer words that the model gives after those before them.

    Args:
        model: the transformers model with a candidate's weights.
        tokenizer: the merge's tokenizer.
        items: lines of the documents' file.
    """
    answers = [item["choices"][item["answer"]] for item in items]
    texts = [f"{item['prompt']} {answer}" for item, answer in zip(items, answers, strict=True)]
    # a word is a token here, and all questions are equally long: no padding is needed
    tokens = torch.tensor([tokenizer.encode(text) for text in texts], device=model.device)
    words = len(answers[0].split())
    given = model(tokens).logits.argmax(-1)[:, -words - 1 : -1]
    return (given == tokens[:, -words:]).float().mean(1).tolist()
