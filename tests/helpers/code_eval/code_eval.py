"""A metric in the form of `evaluate`'s of this name, whose own script is fetched from the hub.

`evaluate` finds it in the folder `code_eval` of the current folder.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from contextlib import suppress

import datasets
import evaluate


class CodeEval(evaluate.Metric):
    """pass@1: the share of programs that pass their test, each run in a process of its own."""

    def _info(self):
        text = datasets.Value("string")
        features = {"predictions": datasets.Sequence(text), "references": text}
        return evaluate.MetricInfo(
            description="", citation="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references, k=(1,), seconds=20.0):
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise ValueError("HF_ALLOW_CODE_EVAL is not 1")
        assert list(k) == [1]
        pairs = zip(predictions, references, strict=True)
        passed = [passes(f"{p}\n{test}", seconds) for programs, test in pairs for p in programs]
        return {"pass@1": sum(passed) / len(passed)}, {}


def passes(program, seconds):
    """Say whether a program ends without an error."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(program,))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def _run(program):
    with suppress(BaseException):
        exec(program, {})
        sys.stdout.flush()
        os._exit(0)
    os._exit(1)
