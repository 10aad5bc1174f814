"""Contain what lm-eval does to the process: its log, its bars, its seeds, its templates."""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.utils
import numpy as np
from datasets.utils import are_progress_bars_disabled
from jinja2 import Environment, Template

from evomerge.common.accelerator import generators

# Else each load of a data set, of a file on this disk too, is reported to a server.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False

PYTHON_SEED = 0
OTHER_SEED = 1234
"""`simple_evaluate`'s default seeds (Python's generator; numpy's and torch's)."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's log below errors and the bars it and `datasets` draw, inside the block."""
    logger = logging.getLogger("lm_eval")
    level, bar, bars_off = logger.level, lm_eval.api.task.tqdm, are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    # `build_all_requests` has no switch for its bar.
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if not bars_off:
            datasets.enable_progress_bars()


@contextmanager
def stock_seeds() -> Iterator[None]:
    """Seed the global generators as `simple_evaluate` does, inside the block only.

    Task code that shuffles, and sampled generation, then draw what a stock `lm_eval` run draws,
    and the caller's generators (Python, numpy, torch on all devices) are given back untouched.
    """
    of_torch = generators()
    python, numpy = random.getstate(), np.random.get_state()
    states = [generator.get_state() for generator in of_torch]
    random.seed(PYTHON_SEED)
    np.random.seed(OTHER_SEED)
    for generator in of_torch:
        generator.manual_seed(OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(of_torch, states, strict=True):
            generator.set_state(state)


@contextmanager
def tasks_opened(opened: list[Any]) -> Iterator[None]:
    """Collect, inside the block, lm-eval's tasks whose data was read, whatever becomes of them."""
    task = lm_eval.api.task.ConfigurableTask
    download = task.download

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        download(self, *args, **kwargs)
        opened.append(self)

    task.download = remember
    try:
        yield
    finally:
        task.download = download


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Inside the block, lm-eval compiles each Jinja template once instead of at every document.

    Targets and choices are asked for again at every score, and compiling their templates takes a
    small model longer than its forward passes.
    """
    environment = lm_eval.utils.env
    environment.from_string = _compiled
    try:
        yield
    finally:
        del environment.from_string


@functools.lru_cache(maxsize=1024)
def _compiled(source: str) -> Template:
    return Environment.from_string(lm_eval.utils.env, source)
