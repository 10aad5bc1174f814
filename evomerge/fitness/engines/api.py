"""Engine `api` answers with a model served elsewhere, through lm-eval's own API models."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.common.plugins import nearest
from evomerge.config import CampaignConfig
from evomerge.fitness.answers import answered_in_groups, check_likelihood
from evomerge.fitness.engines import Engine, EngineContext, Response, engine
from evomerge.fitness.inference.server_reload import InPlace, reason, reload_server
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from evomerge.materialize.disk.weight_record import WeightsRecord

CHAT = "/chat/completions"
RECIPE = "recipe.json"
_OURS = {"base_url", "model", "pretrained", "tokenizer", "tokenizer_backend", "kwargs", "self"}
_OF_SPEED = {
    *("num_concurrent", "batch_size", "max_retries", "timeout", "header", "auth_token"),
    *("verify_certificate", "ca_cert_path"),
}


@engine("api")
class Api(Engine):
    """A model served elsewhere, OpenAI style; every candidate is written to a folder and reloaded.

    Use it where a server such as vLLM answers faster than transformers does, and cannot run in the
    worker, as engine `vllm` does.

    Args:
        url: the server's URL of completions (`…/v1/completions`) or of chats
            (`…/v1/chat/completions`).
        checkpoint: the folder that candidates are written to, each in place of the one before; in
            /dev/shm, which is memory, where server and worker share a machine.
        reload: for servers that take weights in place their root address, by kind:
            `{vllm: 'http://localhost:8000'}` (with VLLM_SERVER_DEV_MODE=1 in its environment) or
            `{sglang: 'http://localhost:30000'}`; for others a shell command in which {checkpoint}
            stands for the folder, or a URL that gets {"checkpoint": folder} as JSON. It must not
            return before the candidate answers.
        model: the name that the server knows the model by.
        timeout: the most seconds that a reload may take.
        args: further arguments of lm-eval's `local-completions`: num_concurrent, max_length, …

    Example: `kind: api, url: 'http://localhost:8000/v1/completions', checkpoint:
    /dev/shm/candidate, reload: {vllm: 'http://localhost:8000'}, args: {num_concurrent: 32}`
    """

    here = False

    def __init__(
        self,
        context: EngineContext,
        *,
        url: str,
        checkpoint: str,
        reload: str | Annotated[dict[InPlace, str], Field(min_length=1, max_length=1)],
        model: str = "candidate",
        timeout: float = 600.0,
        args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(context)
        from evomerge.models.tokens.tokenizer import load_tokenizer

        self._url, self._reload, self._timeout = url, reload, timeout
        self._folder = Path(checkpoint).expanduser()
        trusted = context.config.models.trust_remote_code
        self._tokenizer = load_tokenizer(context.base.tokenizer_folder, trust_remote_code=trusted)
        self.lm: Any = self._client(model, args or {})

    @classmethod
    @override
    def check(cls, config: CampaignConfig, kinds: Mapping[str, str], options: Any) -> None:
        where = "fitness.engine"
        folder = Path(options["checkpoint"]).expanduser()
        if not folder.is_absolute():
            raise InputError(f"{where}.checkpoint: {folder} is relative; write the whole path")
        if folder.exists() and not (folder.is_dir() and _is_ours(folder)):
            raise InputError(
                f"{where}.checkpoint: {folder} holds something else than a candidate; choose a "
                "folder that may be replaced"
            )
        if not options["url"].startswith(("http://", "https://")):
            raise InputError(f"{where}.url: {options['url']} is no http(s) address")
        for name in options.get("args") or {}:
            if name not in (known := _arguments()):
                raise InputError(f"{where}.args.{name}: no such argument; {nearest(name, known)}")
        if not isinstance(reload := options["reload"], str):
            [(server, root)] = reload.items()
            if not root.startswith(("http://", "https://")):
                raise InputError(f"{where}.reload.{server}: {root} is no http(s) address")
            if config.space.changes_shapes:
                raise InputError(
                    f"{where}.reload: {server} takes weights in place only for as many layers and "
                    "experts as it started with, so neither paths nor smaller mixtures can be "
                    "searched so; give a command that restarts it, or leave them out (path: none)"
                )
        if config.workers.count != 1:
            raise InputError(
                f"{where}: a server holds one candidate at a time, so there can be one worker, not "
                f"{config.workers.count}; args: {{num_concurrent: 8}} sends requests side by side"
            )
        for task, kind in kinds.items():
            if kind == "callable":
                raise InputError(
                    f"fitness.tasks: {task} is a callable, which needs the model in the worker; "
                    "use fitness.engine: {kind: hf}"
                )
            if cls.has_template(options) and kind != "generate_until":
                raise InputError(
                    f"fitness.tasks: {task} asks for log-likelihoods ({kind}), which chats do not "
                    "give; use the server's …/completions, or tasks that generate"
                )
        plain = [t.task for t in config.fitness.lm_eval_tasks if not t.apply_chat_template]
        if cls.has_template(options) and plain:
            raise InputError(f"fitness.tasks: {plain[0]} needs apply_chat_template: true for chats")

    @classmethod
    @override
    def identity(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        # Whether it chats, and those of lm-eval's arguments that decide what is asked.
        args = {k: v for k, v in (options.get("args") or {}).items() if k not in _OF_SPEED}
        return {"kind": "api", "chat": cls.has_template(options), "args": args}

    @classmethod
    @override
    def has_template(cls, options: Mapping[str, Any]) -> bool:
        # Chats are put together by the server.
        return options["url"].endswith(CHAT)

    @override
    def weights(self, recipe: Recipe) -> WeightsRecord:
        from evomerge.materialize.disk.weight_record import record_weights

        store = self.context.kernel.statistics.store
        return record_weights(self._folder, recipe, statistics=store is not None)

    @override
    def load(self, recipe: Recipe) -> None:
        """Write the candidate, and have the server load it.

        Raises:
            InputError: it cannot be written, or the server does not load it.
            NonFiniteError: a merged tensor is not finite.
        """
        if self._folder.exists() and _is_ours(self._folder):
            shutil.rmtree(self._folder)
        self._check_room(recipe)
        self.context.write(recipe, self._folder)
        reload_server(self._reload, self._folder, self._timeout)

    def _check_room(self, recipe: Recipe) -> None:
        """Refuse a folder without room for the candidate; /dev/shm is often small."""
        from evomerge.materialize.disk.checkpoint import checkpoint_size

        needed = checkpoint_size(recipe, self.context.base.layout, self.context.kernel)
        place = next(folder for folder in self._folder.parents if folder.exists())
        if needed > (free := shutil.disk_usage(place).free):
            raise InputError(
                f"fitness.engine.checkpoint: {self._folder} needs {needed / 1e9:.3g} GB, and "
                f"{free / 1e9:.3g} GB are free there; make room, or choose another folder"
            )

    @override
    def prepare(self, requests: Sequence[Instance]) -> None:
        """Do nothing: lm-eval's API models tokenise at every call."""

    @override
    def answer(self, requests: Sequence[Instance], counted: bool = False) -> list[Response]:
        """Ask the server; an answer's tokens are those of its text, by the base's tokenizer.

        Raises:
            CandidateError: a log-likelihood is not finite.
            InputError: the server cannot be reached, or does not answer as it should.
        """
        return answered_in_groups(
            requests, lambda request: request.request_type, partial(self._asked, counted)
        )

    def _asked(self, counted: bool, kind: str, requests: list[Instance]) -> list[Response]:
        """Answer requests of one of lm-eval's types."""
        try:
            with _no_bars():
                found = getattr(self.lm, kind)(requests)
        # What a server sends back can break lm-eval's reading of it in any way.
        except Exception as error:
            raise InputError(
                f"fitness.engine.url: {self._url} did not answer as an OpenAI server does: "
                f"{reason(error)}"
            ) from error
        return [self._response(counted, value) for value in found]

    def _response(self, counted: bool, value: Any) -> Response:
        if not isinstance(value, str):
            check_likelihood(value)
            return Response(value)
        cut = value.cut if counted and isinstance(value, _Finished) else None
        text = str(value)
        if not counted or self._tokenizer is None:
            return Response(text, cut=cut)
        return Response(text, len(self._tokenizer.encode(text, add_special_tokens=False)), cut)

    def _client(self, model: str, args: Mapping[str, Any]) -> Any:
        """Build lm-eval's object for the server.

        What it assumes of every model is set to what holds of the base: how much it reads, and
        whether its tokenizer begins a text.
        """
        from lm_eval.api.registry import get_model

        from evomerge.fitness.tasks.lm_eval_quirks import quiet

        chat = self._url.endswith(CHAT)
        if not (chat or self._tokenizer):
            raise InputError(f"models.base: {self.context.base.tokenizer_folder} has no tokenizer")
        told = {} if chat else self._of_base()
        with quiet():
            lm = get_model(_lm_name(chat))(base_url=self._url, model=model, **{**told, **args})
        lm.max_gen_toks = lm._max_gen_toks  # as lm-eval's other models call it
        lm.parse_generations = partial(_with_reasons, lm.parse_generations)
        return lm

    def _of_base(self) -> dict[str, Any]:
        from lm_eval.models.utils import resolve_max_length

        base, tokenizer = self.context.base, self._tokenizer
        assert tokenizer is not None
        templated = any(t.apply_chat_template for t in self.context.config.fitness.lm_eval_tasks)
        begins = tokenizer.bos_token_id in tokenizer.encode("a")[:1]
        return {
            "tokenizer": str(base.tokenizer_folder),
            "tokenizer_backend": "huggingface",
            "trust_remote_code": self.context.config.models.trust_remote_code,
            "max_length": resolve_max_length(base.config, tokenizer),
            "add_bos_token": begins and not templated,  # templates begin a text themselves
        }


def _lm_name(chat: bool) -> str:
    return "local-chat-completions" if chat else "local-completions"


class _Finished(str):
    """An answer's text, with the reason for which the server ended it.

    Attributes:
        cut: whether that was the token limit.
    """

    cut: bool


def _with_reasons(parse: Callable[..., list[Any]], outputs: Any, **kwargs: Any) -> list[Any]:
    """Read a server's answers as lm-eval's `parse` does, each with its `finish_reason`.

    lm-eval sorts answers and hands on their texts only, so that the reason rides on the text.
    """
    texts = parse(outputs=outputs, **kwargs)
    each = outputs if isinstance(outputs, list) else [outputs]
    choices = [sorted(one["choices"], key=lambda c: c["index"]) for one in each]
    reasons = [choice.get("finish_reason") for group in choices for choice in group]
    if len(reasons) != len(texts):
        return texts
    found = []
    for text, ended in zip(texts, reasons, strict=True):
        if isinstance(text, str) and isinstance(ended, str):
            text = _Finished(text)
            text.cut = ended == "length"
        found.append(text)
    return found


def _is_ours(folder: Path) -> bool:
    """Say whether a folder is empty or holds what a recipe was written to."""
    return (folder / RECIPE).is_file() or not any(folder.iterdir())


def _arguments() -> list[str]:
    """Names that `args` may hold: lm-eval's arguments, but for those that have their own option."""
    from lm_eval.models.api_models import TemplateAPI

    known = inspect.signature(TemplateAPI.__init__).parameters
    return [name for name in known if name not in _OURS]


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the bars that lm-eval's API models draw whether they are asked to or not."""
    from lm_eval.models import api_models

    bar, gather = api_models.tqdm, api_models.tqdm_asyncio
    api_models.tqdm = partial(bar, disable=True)
    api_models.tqdm_asyncio = SimpleNamespace(gather=partial(gather.gather, disable=True))
    try:
        yield
    finally:
        api_models.tqdm, api_models.tqdm_asyncio = bar, gather
