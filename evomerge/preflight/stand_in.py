"""Stand-ins for what is not here yet: a model of few layers without weights, a tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from evomerge.config import FitnessConfig
from evomerge.fitness.tasks.task_set import load_sources
from evomerge.models.checks.tokenizer import load_tokenizer
from evomerge.models.layout import layout_of
from evomerge.models.path_config import set_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_PIECES = r" ?\p{L}{1,5}| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
"""As tokenizers split text, but for words, which they know: four characters of English a token."""
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


class Shallow:
    """A model of the first layers of another, with memory for weights that nobody has written."""

    def __init__(
        self, config: PretrainedConfig, depth: int, dtype: torch.dtype, device: str, trusted: bool
    ) -> None:
        """`depth`: the most layers that it will have; it begins with them."""
        self.depth = depth
        self._original = config
        own = copy.deepcopy(config)
        set_layers(own, config, range(depth))
        with no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                own, dtype=dtype, trust_remote_code=trusted
            )
        model.tie_weights()
        self.model = model.to(device).eval().requires_grad_(False)
        parent, _, self._attribute = layout_of(model).prefix.rpartition(".")
        self._parent = model.get_submodule(parent)
        self._layers = list(self._parent.get_submodule(self._attribute).children())

    def cut(self, depth: int) -> None:
        """Let it have so many layers."""
        setattr(self._parent, self._attribute, torch.nn.ModuleList(self._layers[:depth]))
        set_layers(self.model.config, self._original, range(depth))


def tokenizer_for(
    folder: Path, vocabulary: int, fitness: FitnessConfig, trusted: bool
) -> PreTrainedTokenizerBase:
    """The folder's, or one that cuts the tasks' texts into about as many tokens."""
    found = load_tokenizer(folder, trust_remote_code=trusted)
    return guessed_tokenizer(vocabulary, _texts(fitness)) if found is None else found


def guessed_tokenizer(vocabulary: int, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """It knows the pieces of these texts, the most frequent where there are too many."""
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
        for request in chain.from_iterable(source.requests):
            yield from (text for text in request.args if isinstance(text, str))
