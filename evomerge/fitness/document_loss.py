"""The loss of a document: what stands for its score where a gradient is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DocumentLoss:
    """A loss over the log-likelihoods of some continuations.

    Attributes:
        pairs: (context, continuation) of each.
        right: which of them are right; the others are wrong choices. With a single continuation
            the loss is minus its log-likelihood, else the cross-entropy of the right ones among
            all.
        per_token: the log-likelihoods are divided by their continuations' tokens.
    """

    pairs: tuple[tuple[str, str], ...]
    right: tuple[int, ...] = (0,)
    per_token: bool = False

    def of(self, loglikelihoods: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
        """Return the loss, ().

        Args:
            loglikelihoods: of each continuation, () each.
            tokens: how many each has.
        """
        if self.per_token:
            loglikelihoods = [
                value / count for value, count in zip(loglikelihoods, tokens, strict=True)
            ]
        if len(self.pairs) == 1:
            return -loglikelihoods[0]
        all_ = torch.stack(list(loglikelihoods))
        return all_.logsumexp(0) - all_[list(self.right)].logsumexp(0)
