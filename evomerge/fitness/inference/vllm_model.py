"""lm-eval's object around a vLLM engine: prompts as transformers reads them, answers by vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from typing_extensions import override
from vllm import LLM, SamplingParams, TokensPrompt

from evomerge.fitness.answers import Response
from evomerge.fitness.inference.generation import answer_text, read_prompt
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
        prompts, settings, stops = [], [], []
        for request in requests:
            tokens, stop, asked = read_prompt(self, *request.args)
            most, greedy = asked.pop("max_gen_toks"), not asked.pop("do_sample")
            sampling = {**asked, "temperature": 0.0} if greedy else asked
            del sampling["until"]
            prompts.append(TokensPrompt(prompt_token_ids=tokens.tolist()))
            settings.append(
                SamplingParams(max_tokens=most, stop=stop, skip_special_tokens=False, **sampling)
            )
            stops.append(stop)
        outputs = self.llm.generate(prompts, sampling_params=settings, use_tqdm=False)
        found = []
        for output, stop in zip(outputs, stops, strict=True):
            said = list(output.outputs[0].token_ids)
            text = answer_text(self, said, stop)
            found.append(Response(text, *response_end(self, said, stop)))
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
