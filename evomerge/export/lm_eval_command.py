"""The stock `lm_eval` commands that give the campaign's own scores on an export."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.config import FitnessConfig, TaskConfig

ROLLING = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""lm-eval's metrics of rolling log-likelihoods.

lm-eval (0.4.13) groups the windows of a batch that read the same tokens, and reads a shorter
window's log-probabilities off the wrong end of a longer one's: a text that repeats itself over more
than a window gets another figure with every batch size. One window at a time is right.
"""


def stock_commands(fitness: FitnessConfig, checkpoint: str, compute: str) -> list[str]:
    """Return a command for each group of lm-eval's tasks that share their settings.

    lm-eval takes relative data files from the working directory, so a command begins with a `cd` to
    the tasks' folder.

    Args:
        checkpoint: the exported folder.
        compute: the dtype in which the campaign scored, such as `float32`.
    """
    groups: dict[str, list[TaskConfig]] = {}
    for task in fitness.lm_eval_tasks:
        groups.setdefault(json.dumps(_settings(task), sort_keys=True), []).append(task)
    return [_command(fitness, checkpoint, compute, tasks) for tasks in groups.values()]


def _command(
    fitness: FitnessConfig, checkpoint: str, compute: str, tasks: Sequence[TaskConfig]
) -> str:
    names = ",".join(dict.fromkeys(task.task for task in tasks))
    model = f"pretrained={checkpoint},dtype={compute},softmax_dtype=float32"
    words = ["lm_eval", "--model", "hf", "--model_args", model, "--tasks", names]
    metrics = {name.partition(",")[0] for task in tasks for name in (task.metric, *task.measures)}
    size = 1 if metrics & {*ROLLING} else fitness.batch_size
    words += ["--batch_size", str(size)]
    if fitness.include_path:
        words += ["--include_path", fitness.include_path]
    for option, value in _settings(tasks[0]).items():
        words += [option] if value is True else [option, str(value)]
    if fitness.fewshot_seed != 1234:
        words += ["--seed", f"0,1234,1234,{fitness.fewshot_seed}"]
    text = shlex.join(words)
    return f"cd {shlex.quote(fitness.include_path)} && {text}" if fitness.include_path else text


def _settings(task: TaskConfig) -> Mapping[str, Any]:
    """Return the task's settings as lm_eval's options; True stands for a bare flag."""
    options = {
        "--num_fewshot": task.num_fewshot,
        "--apply_chat_template": task.apply_chat_template or None,
        "--system_instruction": task.system_instruction,
        "--fewshot_as_multiturn": str(task.multiturn).lower() if task.apply_chat_template else None,
        "--gen_kwargs": json.dumps(task.gen_kwargs) if task.gen_kwargs else None,
    }
    return {option: value for option, value in options.items() if value is not None}
