"""Estimate scoring, from shapes and this machine's speed, where there are no weights to try.

The requests are built and tokenised, and their forward passes planned, as a worker does it, before
a model without weights. Seconds are parameters × tokens at the measured rate of matrix products,
and numbers moved at the measured rate of copies; memory is that of the largest pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.config import FitnessConfig
from evomerge.fitness.inference.batch import PassShape
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.inference.loglikelihood import LOGITS
from evomerge.fitness.inference.memory import FIRST
from evomerge.fitness.tasks.task_set import TaskSet, load_sources
from evomerge.models.layout import Layout, build_skeleton, layout_of
from evomerge.models.tokens.tokenizer import load_tokenizer
from evomerge.preflight.machine import Rates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOVED_HIDDEN, _MOVED_MLP = 36, 6
"""Numbers that a layer reads or writes beside its products, for each of a token's hidden ones (two
norms, residuals, rotary positions, attention) and for each within the MLP (activation, product)."""
_CALLS = 100
"""Operations that a layer calls, whatever its size."""
_PIECES = r" ?\p{L}{1,5}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
"""As tokenizers split text, but for words, which they know: four characters of English a token."""
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, as its config and its tensors tell them.

    Attributes:
        hidden: numbers of a token between layers.
        attention: numbers of a token's queries, over all heads.
        cache: numbers of a token's keys and values together, over all heads.
        mlp: numbers of a token within the MLP; of a mixture, within the experts that it meets.
        parameters: those of a layer that a token meets.
        vocabulary: rows of the head.
        eager: whether attention scores are held whole, [heads, queries, keys].
        heads: of the queries.
        experts: of a mixture, how many a token meets; else 1.
    """

    hidden: int
    attention: int
    cache: int
    mlp: int
    parameters: float
    vocabulary: int
    eager: bool
    heads: int
    experts: int = 1

    @classmethod
    def of(cls, config: Any, layout: Layout) -> ModelShape:
        """Read a text model's config and layout."""
        heads, hidden = config.num_attention_heads, config.hidden_size
        head = getattr(config, "head_dim", None) or hidden // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        met = getattr(config, "num_experts_per_tok", None) or 1
        mlp = getattr(config, "moe_intermediate_size", None) if met > 1 else None
        mlp = mlp or getattr(config, "intermediate_size", None) or 4 * hidden
        parameters = sum(
            math.prod(tensor.shape) * (met / tensor.shape[0] if tensor.matrices > 1 else 1)
            for tensor in layout.tensors
            if tensor.layer is not None
        )
        return cls(
            hidden=hidden,
            attention=heads * head,
            cache=2 * groups * head,
            mlp=mlp * met,
            parameters=parameters / layout.layers,
            vocabulary=layout.vocab_size,
            eager=config._attn_implementation == "eager",
            heads=heads,
            experts=met,
        )


class ScoringEstimate:
    """A campaign's requests, before a model that has shapes and no weights.

    Attributes:
        passes: the forward passes that score the items, as on the CPU and at first on a GPU.
    """

    def __init__(
        self,
        fitness: FitnessConfig,
        folder: Path,
        config: Any,
        items: Mapping[str, Sequence[str]],
        trusted: bool,
    ) -> None:
        """Build and tokenise the requests, and plan their batches.

        Args:
            folder: of the tokenizer.
            config: the base's text model's.
            items: task → ids.

        Raises:
            InputError: as `TaskSet`.
        """
        model = build_skeleton(config, trust_remote_code=trusted).eval()
        self.shape = ModelShape.of(model.config, layout_of(model))
        tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
        if tokenizer is None:
            tokenizer = guessed_tokenizer(self.shape.vocabulary, _texts(fitness))
        lm = make_lm(model, tokenizer, fitness.batch_size)
        local = Local(lm, fitness.engine.options.get("batch_tokens") or FIRST)
        self._tasks = TaskSet(fitness, local)  # a worker holds it too: its memory counts
        self.passes = local.passes(self._tasks.requests(items))
        kinds = {task.task: task.kind for task in self._tasks.items}
        for task, ids in items.items():
            if kinds[task] == "callable" and ids:
                self.passes += self._of_own_metric(task, ids, tokenizer, fitness.batch_size)

    def _of_own_metric(
        self, task: str, ids: Sequence[str], tokenizer: PreTrainedTokenizerBase, rows: int
    ) -> Iterator[PassShape]:
        """A function of one's own, taken to read each document once, with logits everywhere."""
        texts = map(str, self._tasks.documents(task, ids))
        lengths = sorted(len(tokenizer.encode(text)) for text in texts)
        for start in range(0, len(lengths), rows):
            group = lengths[start : start + rows]
            yield PassShape(len(group), group[-1], len(group) * group[-1], masked=True)

    def bytes(self, layers: int, itemsize: int) -> int:
        """Memory beside the weights, in bytes, of the largest forward pass through `layers`.

        Args:
            itemsize: bytes of a number that the model computes with.
        """
        return max((self._bytes(one, layers, itemsize) for one in self.passes), default=0)

    def _bytes(self, one: PassShape, layers: int, itemsize: int) -> int:
        shape, tokens = self.shape, one.rows * one.length
        # 1. Through a layer: hidden states and their norm beside the larger of attention (queries,
        #    keys and values, rotated and repeated for every head) and MLP (gate, up, activation,
        #    product; what each expert is given and gives); norms are computed in float32.
        gathered = 2 * shape.experts * shape.hidden if shape.experts > 1 else 0
        inside = max(2 * shape.cache + 4 * shape.attention, gathered + 4 * shape.mlp)
        layer = tokens * (itemsize * (2 * shape.hidden + inside) + 4 * shape.hidden)
        # 2. A mask of booleans, which attention turns into numbers; scores where they are held.
        pairs = one.rows * one.length * (one.seen + one.length)
        mask = pairs * (1 + itemsize) if one.masked else 0
        scores = 3 * pairs * shape.heads * itemsize if shape.eager else 0
        # 3. Logits, and pieces of them in float32 whose log-probabilities are computed.
        logits = one.logits * shape.vocabulary
        head = logits * itemsize + 2 * 4 * min(logits, LOGITS)
        # 4. Keys and values.
        cache = one.cached * layers * shape.cache * itemsize
        return cache + max(layer + mask + scores, tokens * shape.hidden * itemsize + head)

    def seconds(self, layers: float, rates: Rates, itemsize: int) -> float:
        """Seconds of all forward passes through `layers`."""
        return sum(one.times * self._seconds(one, layers, rates, itemsize) for one in self.passes)

    def _seconds(self, one: PassShape, layers: float, rates: Rates, itemsize: int) -> float:
        shape, tokens = self.shape, one.rows * one.length
        # 1. Products with weights: a multiplication for each parameter and token.
        products = tokens * shape.parameters / rates.multiplications(tokens)
        # 2. Attention: queries with keys, and scores with values; without a mask of its own half
        #    of the pairs are left out.
        pairs = tokens * (one.seen + one.length * (1.0 if one.masked else 0.5))
        attention = 2 * pairs * shape.attention / rates.multiplications(tokens)
        # 3. What is read and written besides; the cache is read as a whole at each step.
        moved = tokens * (_MOVED_HIDDEN * shape.hidden + _MOVED_MLP * shape.mlp)
        moved += one.rows * one.seen * shape.cache
        layer = products + attention + moved * itemsize / rates.copied + _CALLS * rates.call
        # 4. The head, where logits are asked for, and their log-probabilities in float32.
        logits = one.logits * shape.vocabulary
        head = logits * shape.hidden / rates.multiplications(one.logits)
        return layers * layer + head + logits * (itemsize + 4 * 4) / rates.copied


def guessed_tokenizer(vocabulary: int, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Make up a tokenizer that cuts texts into about as many tokens as others do.

    It knows the pieces of these texts, the most frequent where there are too many.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=_TEMPLATE,
    )


def _texts(fitness: FitnessConfig) -> Iterator[str]:
    for source in load_sources(fitness, None):
        yield from map(str, source.documents)
        for request in chain.from_iterable(source.requests):
            yield from (text for text in request.args if isinstance(text, str))
