"""lm-eval's object around a vLLM engine: prompts as transformers reads them, answers by vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from typing_extensions import override
from vllm import LLM, SamplingParams, TokensPrompt

from evomerge.common.errors import InputError
from evomerge.fitness.answers import Response
from evomerge.fitness.inference.generation import answer_text, own_settings, read_prompt
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.response_tokens import end_tokens, response_end

_LIKELIHOODS = {"temperature": 0.0, "prompt_logprobs": 1, "max_tokens": 1, "detokenize": False}


class VllmModel(HFLM):
    """Tokenises, truncates and stops as `HFLM` does, so that engines give the same scores.

    Attributes:
        llm: vLLM's engine; the model inside this object has shapes and no weights. Set by whoever
            builds it.
    """

    llm: LLM

    def __init__(self, skeleton: Any, tokenizer: Any) -> None:
        """Take the base model's shapes and settings, and its tokenizer.

        Raises:
            InputError: the model's own settings of generation are some that vLLM has not.
        """
        with quiet():
            super().__init__(pretrained=skeleton, tokenizer=tokenizer, softmax_dtype="float32")
        own = own_settings(self)
        own.pop("max_new_tokens", None)  # a request has its own limit
        # what the model's generation_config.json decides, as `HFLM` has it
        self._sampling = {"stop_token_ids": sorted(end_tokens(self))}
        if "repetition_penalty" in own:
            self._sampling["repetition_penalty"] = own.pop("repetition_penalty")
        if own:
            raise InputError(
                f"models.base: its generation_config.json sets {', '.join(sorted(own))}, which "
                "vLLM does not know; use fitness.engine: {kind: hf}, or take it out of that file"
            )

    def try_out(self) -> None:
        """Run the engine once, with any weights: some kernels say only then what they cannot do.

        Raises:
            Exception: of vLLM's own.
        """
        prompt = TokensPrompt(prompt_token_ids=[0])
        settings = SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False)
        self.llm.generate([prompt], settings, use_tqdm=False)

    def generate(self, requests: Sequence[Instance]) -> list[Response]:
        """Answer requests of `generate_until`, all of them at once."""
        prompts, settings, stops = [], [], []
        for request in requests:
            tokens, stop, asked = read_prompt(self, *request.args)
            most, greedy = asked.pop("max_gen_toks"), not asked.pop("do_sample")
            sampling = {**asked, "temperature": 0.0} if greedy else asked
            del sampling["until"]
            prompts.append(tokens.tolist())
            settings.append({**self._sampling, **sampling, "max_tokens": most, "stop": stop})
            stops.append(stop)
        said: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        while going:
            outputs = self.llm.generate(
                [TokensPrompt(prompt_token_ids=prompts[i] + said[i]) for i in going],
                sampling_params=[self._settings(settings[i], len(said[i])) for i in going],
                use_tqdm=False,
            )
            ended = {}
            for i, output in zip(going, outputs, strict=True):
                said[i] += output.outputs[0].token_ids
                ended[i] = output.outputs[0].stop_reason
            # vLLM looks for stop strings in the answer as it reads behind the prompt, lm-eval in
            # the answer alone, where the first word may lack its space: then the answer goes on
            going = [
                i
                for i in going
                if isinstance(ended[i], str)
                and len(said[i]) < settings[i]["max_tokens"]
                and not self._stopped(said[i], stops[i])
            ]
        return [
            Response(answer_text(self, tokens, stop), *response_end(self, tokens, stop))
            for tokens, stop in zip(said, stops, strict=True)
        ]

    def _settings(self, settings: Mapping[str, Any], said: int) -> SamplingParams:
        """Return a request's settings where so many tokens of its answer are there already."""
        left = settings["max_tokens"] - said
        return SamplingParams(skip_special_tokens=False, **{**settings, "max_tokens": left})

    def _stopped(self, said: Sequence[int], stop: Sequence[str]) -> bool:
        """Say whether lm-eval finds a stop string in an answer."""
        text = self.tokenizer.decode(said, skip_special_tokens=False)
        return any(string in text for string in stop if string)

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
