"""Have a server load a candidate's checkpoint: in place, or by the user's own command or URL."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from evomerge.common.errors import InputError

InPlace: TypeAlias = Literal["vllm", "sglang"]
WHERE = "fitness.engine.reload"
POLL = 0.2
"""Seconds between two tries to empty vLLM's prefix cache."""


class _ReloadError(Exception):
    """The server answered, and did not do it."""


def reload_server(reload: str | Mapping[InPlace, str], folder: Path, timeout: float) -> None:
    """Have the server answer with the checkpoint in `folder` when this returns.

    Args:
        reload: a command with {checkpoint} in it, a URL that gets {"checkpoint": folder}, or the
            kind of a server that takes weights in place → its root address.
        folder: as the server sees it.
        timeout: the most seconds that it may take.

    Raises:
        InputError: it failed, or took longer.
    """
    if isinstance(reload, str):
        own = _post_checkpoint if reload.startswith(("http://", "https://")) else _run_command
        name, action = repr(reload), partial(own, reload, folder, timeout)
    else:
        [(kind, root)] = reload.items()
        name, action = f"{kind} at {root}", partial(_IN_PLACE[kind], root, folder, timeout)
    try:
        action()
    except Exception as error:
        raise InputError(f"{WHERE}: {name} failed: {reason(error)}") from error


def _run_command(command: str, folder: Path, timeout: float) -> None:
    command = command.replace("{checkpoint}", shlex.quote(str(folder)))
    subprocess.run(command, shell=True, check=True, timeout=timeout, capture_output=True, text=True)


def _post_checkpoint(url: str, folder: Path, timeout: float) -> None:
    import requests

    answer = requests.post(url, json={"checkpoint": str(folder)}, timeout=timeout)
    answer.raise_for_status()


def _vllm(root: str, folder: Path, timeout: float) -> None:
    """Follow vLLM's development end points (vllm/entrypoints/serve/dev of 0.32)."""
    ends = time.monotonic() + timeout
    way_out = (
        "start the server with VLLM_SERVER_DEV_MODE=1 in its environment, and give its root, "
        "without /v1"
    )
    # 1. every worker of the server reads the folder and writes its weights over the old ones
    asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    _post(f"{root.rstrip('/')}/collective_rpc", asked, timeout, way_out)
    # 2. what it remembers of prompts is the last candidate's; kept while a request still runs
    while True:
        emptied = _post(f"{root.rstrip('/')}/reset_prefix_cache", None, timeout, way_out)
        if emptied.get("success", True):  # older versions answer with nothing
            return
        if time.monotonic() > ends:
            raise _ReloadError("its prefix cache cannot be emptied, for other requests use it")
        time.sleep(POLL)


def _sglang(root: str, folder: Path, timeout: float) -> None:
    """Follow SGLang's end point, which empties the prefix cache, too (0.5.23; not run here)."""
    asked = {"model_path": str(folder), "flush_cache": True}
    way_out = "give the root of an SGLang server, without /v1"
    answer = _post(f"{root.rstrip('/')}/update_weights_from_disk", asked, timeout, way_out)
    if not answer.get("success", True):
        raise _ReloadError(str(answer.get("message")))


_IN_PLACE: Mapping[InPlace, Callable[[str, Path, float], None]] = {
    "vllm": _vllm,
    "sglang": _sglang,
}


def _post(url: str, content: Any, timeout: float, way_out: str) -> Mapping[str, Any]:
    """Post JSON and return the answer's, {} where it has none.

    Raises:
        _ReloadError: the server has no such address, or says that it failed.
    """
    import requests

    answer = requests.post(url, json=content, timeout=timeout)
    if answer.status_code == requests.codes.not_found:
        raise _ReloadError(f"{url} is not there (404); {way_out}")
    if not answer.ok:
        said = " ".join(answer.text.split())[:300]
        raise _ReloadError(f"{url} answered {answer.status_code}: {said or 'nothing'}; see its log")
    found = answer.json() if answer.content else {}
    return found if isinstance(found, Mapping) else {}


def reason(error: BaseException) -> str:
    """Return the error, and what a command that failed said last."""
    if isinstance(error, _ReloadError):
        return str(error)
    said = getattr(error, "stderr", None) or str(error)
    return f"{type(error).__name__}: {said.strip().splitlines()[-1] if said.strip() else ''}"
