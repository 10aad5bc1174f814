"""The losses of documents: what stands for their scores where a gradient is wanted.

Each names the rows that it must see, and makes one number of what the model says there. Some know
the right answer, some compare with an expert's answers, and some know neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from evomerge.fitness.expert_answers import ExpertAnswer


@dataclass(frozen=True)
class LastTokens:
    """Stands for the places that predict a context's last tokens, and the one that comes next.

    Attributes:
        count: the number of places, fewer where the context is shorter.
    """

    count: int


Continuation = str | tuple[int, ...] | LastTokens
"""What is predicted after a context: a text, given tokens, or the context's own end."""
Asked = tuple[str, Continuation]
"""A context and its continuation."""


@dataclass(frozen=True)
class Reading:
    """What a model says of a continuation.

    Attributes:
        loglikelihood: of the continuation, ().
        tokens: how many it has.
        logits: float32 [tokens, vocabulary], where each token is predicted; None unless asked for.
        hidden: float32 [tokens, hidden size], half-way through the layers; None unless asked for.
    """

    loglikelihood: Tensor
    tokens: int
    logits: Tensor | None = None
    hidden: Tensor | None = None


Need = Literal["loglikelihoods", "logits", "hidden"]


class DocumentLoss(ABC):
    """A loss over what a model says of some continuations.

    Attributes:
        needs: what it sees beside log-likelihoods, of which there is then one.
        pairs: context and continuation of each.
    """

    needs: ClassVar[Need] = "loglikelihoods"
    pairs: tuple[Asked, ...]

    @abstractmethod
    def of(self, read: Sequence[Reading]) -> Tensor:
        """Return the loss, (); `read`: of each pair."""


@dataclass(frozen=True)
class RightAnswerLoss(DocumentLoss):
    """Minus the log-likelihood of a target, or the cross-entropy of right choices among all.

    Attributes:
        pairs: the target, or all choices.
        right: which of them are right; the others are wrong choices.
        per_token: the log-likelihoods are divided by their continuations' tokens.
    """

    pairs: tuple[Asked, ...]
    right: tuple[int, ...] = (0,)
    per_token: bool = False

    @override
    def of(self, read: Sequence[Reading]) -> Tensor:
        values = [
            one.loglikelihood / one.tokens if self.per_token else one.loglikelihood for one in read
        ]
        if len(values) == 1:
            return -values[0]
        all_ = torch.stack(values)
        return all_.logsumexp(0) - all_[list(self.right)].logsumexp(0)


@dataclass(frozen=True)
class BoundedLoss(DocumentLoss):
    """(1 − p^q) / q of a loss −log p, which is at most 1 / q.

    Generalized cross-entropy (Zhang & Sabuncu 2018, arXiv:1805.07836, eq. 6): between the loss
    itself (q → 0) and the probability of being wrong (q = 1). Its slope is p^q times the loss's.

    Attributes:
        pairs: the loss's.
        loss: minus a log-probability.
        power: q, above 0.
    """

    pairs: tuple[Asked, ...]
    loss: RightAnswerLoss
    power: float

    @override
    def of(self, read: Sequence[Reading]) -> Tensor:
        return -torch.expm1(-self.power * self.loss.of(read)) / self.power


@dataclass(frozen=True)
class ChoiceEntropy(DocumentLoss):
    """Entropy, in nats, of the choices' distribution (AdaMerging, Yang et al. 2023, eq. 6)."""

    pairs: tuple[Asked, ...]

    @override
    def of(self, read: Sequence[Reading]) -> Tensor:
        logs = torch.stack([one.loglikelihood for one in read]).log_softmax(0)
        return -(logs.exp() * logs).sum()


@dataclass(frozen=True)
class TokenEntropy(DocumentLoss):
    """Mean entropy, in nats, of the next token at the places of one continuation."""

    needs: ClassVar[Need] = "logits"
    pairs: tuple[Asked, ...]

    @override
    def of(self, read: Sequence[Reading]) -> Tensor:
        [one] = read
        assert one.logits is not None
        logs = one.logits.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1).mean()


@dataclass(frozen=True)
class ExpertLoss(DocumentLoss):
    """Divergence from an expert's next tokens.

    After Expert Merging, Zhang et al. 2025, arXiv:2509.25712: the mean over its answer's tokens of
    KL(p ‖ q), p the expert's distribution over its likeliest tokens and, as one more, all others
    together, q the model's over the same. It is never negative, 0 for the expert itself, and at
    most the divergence over the whole vocabulary.

    Attributes:
        pairs: the prompt, and the expert's answer.
        answer: what the expert said there.
    """

    needs: ClassVar[Need] = "logits"
    pairs: tuple[Asked, ...]
    answer: ExpertAnswer

    @override
    def of(self, read: Sequence[Reading]) -> Tensor:
        [one] = read
        assert one.logits is not None
        device, answer = one.logits.device, self.answer
        # 1. log q of the expert's likeliest tokens
        logs = one.logits.log_softmax(-1)
        ids, log_p = answer.ids.long().to(device), answer.logs.to(device)
        found = (log_p.exp() * (log_p - logs.gather(-1, ids))).sum(-1)
        # 2. and of all others together
        if ids.shape[-1] < logs.shape[-1]:
            others = logs.scatter(-1, ids, -torch.inf).logsumexp(-1)
            log_rest = answer.log_rest.to(device)
            found = found + log_rest.exp() * (log_rest - others)
        return found.mean()


@dataclass(frozen=True)
class ExpertAndHiddenLoss(ExpertLoss):
    """`ExpertLoss`, and how far hidden states are from the expert's.

    That is `weight` times the mean square of the differences half-way through the layers, over the
    answer's tokens and the entries of a hidden state.

    Attributes:
        weight: of the hidden states' error.
    """

    needs: ClassVar[Need] = "hidden"
    weight: float = 1.0

    @override
    def of(self, read: Sequence[Reading]) -> Tensor:
        [one] = read
        assert one.hidden is not None
        assert self.answer.hidden is not None
        theirs = self.answer.hidden.to(one.hidden.device, torch.float32)
        return super().of(read) + self.weight * (one.hidden - theirs).square().mean()
