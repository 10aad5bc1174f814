"""lm-eval's object around a vLLM engine: prompts as transformers reads them, answers by vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from typing_extensions import override
from vllm import LLM, SamplingParams, TokensPrompt

from evomerge.fitness.answers import Response
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.response_tokens import response_end

_LIKELIHOODS = {"temperature": 0.0, "prompt_logprobs": 1, "max_tokens": 1, "detokenize": False}


class VllmModel(HFLM):
    """Tokenises, truncates and stops as `HFLM` does, so that engines give the same scores.

    Attributes:
        llm: vLLM's engine; the model inside this object has shapes and no weights.
    """

    def __init__(self, llm: LLM, skeleton: Any, tokenizer: Any) -> None:
        with quiet():
            super().__init__(pretrained=skeleton, tokenizer=tokenizer, softmax_dtype="float32")
        self.llm = llm

    def generate(self, requests: Sequence[Instance]) -> list[Response]:
        """Answer requests of `generate_until`, all of them at once."""
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        prompts, settings, stops = [], [], []
        for request in requests:
            context, given = request.args
            asked = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
            most, stop = asked.pop("max_gen_toks"), handle_stop_sequences(asked.pop("until"), eos)
            if not asked.pop("do_sample"):
                asked["temperature"] = 0.0
            room = self.max_length - most
            tokens, _ = self.tok_batch_encode([context], left_truncate_len=room)
            prompts.append(TokensPrompt(prompt_token_ids=tokens[0].tolist()))
            settings.append(
                SamplingParams(max_tokens=most, stop=stop, skip_special_tokens=False, **asked)
            )
            stops.append(stop)
        outputs = self.llm.generate(prompts, sampling_params=settings, use_tqdm=False)
        found = []
        for output, stop in zip(outputs, stops, strict=True):
            tokens = list(output.outputs[0].token_ids)
            text = postprocess_generated_text(self.tok_decode(tokens), stop, None)
            found.append(Response(text, *response_end(self, tokens, stop)))
        return found

    @override
    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score (key, context tokens, continuation tokens) by `prompt_logprobs`.

        A text that leaves no room for one token more loses its first tokens.
        """
        pairs = []
        for _, context, continuation in requests:
            tokens = [*context, *continuation][-(self.max_length - 1) :]
            pairs.append((tokens, min(len(continuation), len(tokens) - 1)))
        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=tokens) for tokens, _ in pairs],
            sampling_params=SamplingParams(**_LIKELIHOODS),
            use_tqdm=False,
        )
        found = []
        for output, (tokens, scored) in zip(outputs, pairs, strict=True):
            given = output.prompt_logprobs or []
            said = [given[place][tokens[place]] for place in range(-scored, 0)]
            greedy = all(one.rank == 1 for one in said)
            found.append((sum(one.logprob for one in said), greedy))
        return found
