"""Write a model's calibration file: statistics of texts that run through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from evomerge.common.digest import canonical_json
from evomerge.common.errors import InputError
from evomerge.fitness.calibration.backward_pass import SINGLE, group_size, take_gradients
from evomerge.fitness.calibration.forward_pass import check_inputs, take_inputs, without_inputs
from evomerge.fitness.calibration.layered_model import LayeredModel
from evomerge.fitness.calibration.texts import Text, texts_digest, tokenized
from evomerge.fitness.calibration.work_folder import work_folder
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.files.calibration_file import (
    CalibrationHead,
    open_calibration,
    write_calibration,
)
from evomerge.models.layout import Layout
from evomerge.models.tokens.tokenizer import load_tokenizer

FORWARD, BACKWARD = ("gram", "mean_abs", "router", "cross"), ("fisher", "gtheta", "sens")
"""Kinds of statistics by the pass that takes them."""


@dataclass(frozen=True)
class Calibration:
    """What is asked for.

    Attributes:
        name: the model's, for messages.
        texts: in the order in which they are read.
        kinds: of `calibration_file.KINDS`.
        tokens: at which each text is cut off.
        threads: how many texts are run at once; it does not change the result.
        device: of torch; texts are run one by one on other ones than `cpu`.
        together: the models that `cross` is about, the one that is calibrated among them.
    """

    name: str
    texts: Sequence[Text]
    kinds: Sequence[str]
    tokens: int
    threads: int = 1
    device: str = "cpu"
    together: Sequence[Checkpoint] = ()


def calibrate(
    source: Checkpoint,
    asked: Calibration,
    target: Path,
    *,
    tokenizer: Path | None = None,
    trust_remote_code: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a calibration file, unless it is there; a process that was killed is gone on with.

    Args:
        target: the file.
        tokenizer: the folder of the tokenizer; the source's own, unless it is given.
        told: is told of progress.

    Raises:
        InputError: the model cannot be calibrated or read, a statistic is not finite, or another
            file stands there.
    """
    folder = tokenizer or source.tokenizer_folder
    # 1. what it is made of
    check_inputs(source.layout, asked.name, asked.kinds)
    reader = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if reader is None:
        raise InputError(f"{asked.name}: no tokenizer in {folder}; copy its tokenizer files there")
    positions = getattr(source.config, "max_position_embeddings", None) or asked.tokens
    cut = min(asked.tokens, positions)
    texts = tokenized(asked.name, asked.texts, reader, cut, source.layout.vocab_size)
    head = CalibrationHead(
        source=source.digest,
        documents=texts_digest(asked.texts),
        samples=len(texts),
        tokens=sum(map(len, texts)),
        max_tokens=cut,
        kinds=tuple(sorted(asked.kinds)),
        together=tuple(one.digest for one in asked.together),
    )
    if target.exists():
        check_same(target, head)
        return target
    # 2. the passes
    identity = canonical_json({**asdict(head), "torch": torch.__version__, "on": asked.device})
    sizes = sizes_of(source.layout, asked.kinds, len(texts))
    width = getattr(source.config.get_text_config(decoder=True), "hidden_size", 0)
    lengths, models = list(map(len, texts)), max(1, len(asked.together))
    states = states_bytes(source.layout.layers, width, asked.kinds, lengths, models)
    with work_folder(target, identity, states + 2 * sum(sizes.values())) as work:
        layered = partial(
            LayeredModel,
            tokens=texts[0],
            device=asked.device,
            trust_remote_code=trust_remote_code,
        )
        model = layered(source, asked.name)
        threads = asked.threads if asked.device == "cpu" else 1
        found: dict[str, Tensor] = {}
        shared: dict[str, str] = {}
        forward = [kind for kind in FORWARD if kind in asked.kinds]
        backward = [kind for kind in BACKWARD if kind in asked.kinds]
        stacked = without_inputs(source.layout)
        of_inputs = [kind for kind in forward if kind != "router"]
        if of_inputs and stacked:
            told(
                f"{', '.join(of_inputs)}: none of a mixture's experts, which lie stacked in "
                f"{stacked} and its like; each reads tokens of its own, and methods do without"
            )
        if forward:
            together = [
                model if one is source else layered(one, one.name) for one in asked.together
            ]
            found, shared = take_inputs(model, texts, forward, work, threads, told, together)
        if backward:
            found |= take_gradients(model, texts, backward, work, threads, told)
        # 3. the file
        write_calibration(target, CalibrationHead(**{**asdict(head), "same_input": shared}), found)
    return target


def check_same(path: Path, wanted: CalibrationHead) -> None:
    """Refuse a calibration file that was made of something else.

    Raises:
        InputError: names what differs.
    """
    held = open_calibration(path).head
    for name in ("source", "documents", "max_tokens", "together"):
        if getattr(held, name) != getattr(wanted, name):
            raise InputError(
                f"{path}: exists, and was made with other {name}; choose another file (--to), or "
                "remove it"
            )
    if missing := sorted({*wanted.kinds} - {*held.kinds}):
        raise InputError(
            f"{path}: exists without {', '.join(missing)}; choose another file (--to), or remove it"
        )


def sizes_of(layout: Layout, kinds: Sequence[str], samples: int) -> dict[str, int]:
    """Kind → bytes in the file, at most: each matrix of a layer is taken to have its own input."""
    inside = [t.shape for t in layout.tensors if t.layer is not None and len(t.shape) == 2]
    inputs = sum(max(shape) if len(shape) == 1 else shape[-1] for shape in _inputs(layout))
    routers = [t for t in layout.tensors if t.group == "router" and len(t.shape) == 2]
    known = {
        "fisher": 4 * layout.parameters,
        "gtheta": 4 * layout.parameters * min(SINGLE, samples),
        "gram": 4 * sum(shape[-1] ** 2 for shape in inside),
        "cross": 4 * sum(shape[-1] ** 2 for shape in inside),
        "mean_abs": 4 * inputs,
        "router": 4 * sum(t.shape[0] ** 2 + t.shape[0] for t in routers),
        "sens": 8 * len(layout.tensors),
    }
    return {kind: known[kind] for kind in kinds}


def _inputs(layout: Layout) -> list[tuple[int, ...]]:
    return [t.shape for t in layout.tensors if len(t.shape) in (1, 2) and t.group != "embeddings"]


def states_bytes(
    layers: int, hidden: int, kinds: Sequence[str], lengths: Sequence[int], models: int = 1
) -> int:
    """Bytes of hidden states on disk at a time.

    Args:
        hidden: numbers of a token between layers.
        lengths: tokens of each text.
        models: that are run side by side.
    """
    forward = 2 * sum(lengths) * models if {*kinds} & {*FORWARD} else 0
    most = group_size(layers, hidden, max(lengths))
    longest = sum(sorted(lengths, reverse=True)[:most])
    backward = (layers + 3) * longest if {*kinds} & {*BACKWARD} else 0
    return 4 * hidden * max(forward, backward)
