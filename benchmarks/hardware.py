"""What models take on GPUs, reckoned from shapes: memory, seconds a candidate, trials in a night.

Run `python benchmarks/hardware.py`. No GPU is used. For each size of model and each GPU: how many
GPUs a worker needs, where the planner puts the sources (the very plan that a worker makes), and the
seconds of one candidate of task arithmetic over a base and two experts in bf16:

- merging: the bytes of all sources and of the candidate, read and written once, at the share
  `BANDWIDTH` of the GPU's memory bandwidth; sources that stay in the host's memory come at `PCIE`;
- log-likelihoods: two operations a parameter and token, at the share `COMPUTE` of the peak;
- generation with the `hf` engine: each position of a batch reads the model once.

`evomerge check` measures on the machine itself; these figures are for choosing one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import torch
from transformers import LlamaConfig

from evomerge.materialize.memory.gpu_memory import GpuMemoryPlan, needs_of
from evomerge.models.layout import derive_layout

BATCHES = (16, 8, 4)
"""Requests at a time: the largest of these that fits on one GPU, else on several."""
DOCUMENTS, PROMPT, ANSWER = 300, 300, 150
"""Documents of a candidate, the tokens of each, and those of an answer where there is one."""
BANDWIDTH, COMPUTE = 0.6, 0.4
"""Shares of a GPU's peaks that are reckoned with."""
PCIE = 25e9
"""Bytes a second from pinned memory."""
NIGHT = 8 * 3600
SPARE = 1 << 30
"""Bytes of a GPU that its driver and PyTorch take."""

MODELS = {
    "1.5 B": (1536, 8960, 28, 12, 2, 151_936),
    "7 B": (4096, 14_336, 32, 32, 8, 32_000),
    "13 B": (5120, 13_824, 40, 40, 40, 32_000),
    "70 B": (8192, 28_672, 80, 64, 8, 128_256),
}
"""Name → hidden size, inner size, layers, heads, key-value heads, vocabulary."""
GPUS = {
    "24 GB (RTX 4090)": (24, 1.0e12, 165e12),
    "48 GB (L40S)": (48, 0.86e12, 362e12),
    "80 GB (A100)": (80, 2.0e12, 312e12),
    "141 GB (H200)": (141, 4.8e12, 989e12),
}
"""Name → memory in GB, bytes a second, operations a second in bf16: the makers' figures."""


@dataclass(frozen=True)
class Row:
    """One size of model on one kind of GPU; seconds are those of a candidate."""

    model: str
    gpu: str
    gpus: int
    batch: int
    sources: str
    gigabytes: float
    merging: float
    loglikelihoods: float
    generation: float

    @property
    def trials(self) -> tuple[float, ...]:
        """In a night, with one worker: on log-likelihoods, and on generation."""
        scoring = (self.loglikelihoods, self.generation)
        return tuple(float(f"{NIGHT / (self.merging + one):.2g}") for one in scoring)


def reckon(model: str, gpu: str) -> Row:
    hidden, inner, layers, heads, kv_heads, vocabulary = MODELS[model]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    layout = derive_layout(config)
    source = SimpleNamespace(config=config, dtype=lambda name: torch.bfloat16)
    sources = dict.fromkeys(("base", "a", "b"), source)
    size, bandwidth, compute = GPUS[gpu]

    # 1. as few GPUs as hold a candidate, with the largest batch, and where its sources then lie
    for gpus, batch in ((n, of_batch) for n in itertools.count(1) for of_batch in BATCHES):
        needs = needs_of(sources, layout, torch.bfloat16, batch)
        free = gpus * (int(size * 1e9) - SPARE)
        placement = GpuMemoryPlan(needs, free, pinnable=1 << 40).placement
        if placement != "too large":
            break

    # 2. seconds: layers lie on the GPUs one after another, so that one of them works at a time
    moved = needs.sources + needs.candidate
    merging = moved / (BANDWIDTH * bandwidth)
    if placement == "prefetched":
        merging = max(merging, needs.sources / PCIE)
    tokens = DOCUMENTS * PROMPT
    reading = 2 * layout.parameters * tokens / (COMPUTE * compute)
    steps = math.ceil(DOCUMENTS / batch) * ANSWER
    writing = steps * needs.candidate / (BANDWIDTH * bandwidth)
    held = needs.all if placement == "cached" else needs.least
    where = "on the GPU" if placement == "cached" else "streamed"
    return Row(model, gpu, gpus, batch, where, held / 1e9, merging, reading, reading + writing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [reckon(model, gpu) for model in MODELS for gpu in GPUS]
    if arguments.json:
        print(json.dumps([{**asdict(row), "trials": row.trials} for row in rows], indent=1))
        return
    print(
        "| model | GPUs of a worker | batch | sources | GB | merging, s | "
        f"{DOCUMENTS} documents, s | "
        f"{DOCUMENTS} answers, s | trials in 8 h: documents | answers |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        documents, answers = row.trials
        print(
            f"| {row.model} | {row.gpus} × {row.gpu} | {row.batch} | {row.sources} | "
            f"{row.gigabytes:.0f} | "
            f"{row.merging:.1f} | {row.loglikelihoods:.0f} | {row.generation:.0f} | "
            f"{documents:,.0f} | {answers:,.0f} |"
        )


if __name__ == "__main__":
    main()
