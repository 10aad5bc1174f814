"""70 B shapes: `evomerge merge` in little memory, and what a campaign's statistics of them take.

Run `python benchmarks/big_shapes.py`. A base and three experts have the shapes of a Llama of 70 B
parameters in bf16, with `--layers` of its 80 layers: one tensor is merged after another, so that
the largest, embeddings and head of 2.1 GB, decide the peak, and more layers must not raise it. The
files are sparse: one MB in sixteen holds random numbers, the others are holes that read as zeros.
Each merge is a new process that has seen none of the models; its memory is the sum of the resident
sets of it and its children, pages of mapped files among them, looked at twenty times a second. The
result, which is no sparse file, is removed at once.

Printed, too: the memory that the planner wants of one GPU of 24 GB for a campaign on 7 B (as
`benchmarks/hardware.py` has it), and the statistics of 70 B sources, as `evomerge check` tells
them before a campaign. Exits with 1 when a merge takes more than `--limit` GB, or a deeper model a
tenth more than a shallower one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HIDDEN, INNER, HEADS, KEYS, VOCABULARY = 8192, 28672, 64, 8, 128_256
DEPTH = 80
EXPERTS = ("first", "second", "third")
METHODS = {
    "linear": {"weight": (0.6, 0.3, 0.1)},
    "task_arithmetic": {"weight": (0.6, 0.3, 0.1)},
    "ties": {"weight": (0.6, 0.3, 0.1), "density": (0.02, 0.03, 0.04)},
    "dare_ties": {"weight": (0.6, 0.3, 0.1), "density": (0.02, 0.03, 0.04)},
}
STATISTICS = ("linear", "ties", "tsvm")
"""Methods whose statistics of 70 B sources are told."""
EVERY, BLOCK = 16 << 20, 1 << 20
"""Bytes of a tensor, and how many of them are random numbers."""


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    keys = KEYS * HIDDEN // HEADS
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (keys, HIDDEN),
            "self_attn.v_proj": (keys, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def config_of(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def save(folder: Path, layers: int) -> int:
    """Write the models as sparse files; return the parameters of one."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop, tensors = 0, []
    for name, shape in shapes(layers):
        start, stop = stop, stop + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
        tensors.append((start, stop))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * 0.02
    for number, source in enumerate(("base", *EXPERTS)):
        (folder / source).mkdir(parents=True)
        (folder / source / "config.json").write_text(json.dumps(config_of(layers)))
        with (folder / source / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            begin = file.tell()
            file.truncate(begin + stop)
            for place in (p for low, high in tensors for p in range(low, high, EVERY)):
                size = min(BLOCK, stop - place) // 2
                values = block(noise, place, size)
                if number:
                    values = values + 0.1 * block(noise, place + number * 15_485_863, size)
                file.seek(begin + place)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return stop // 2


def block(noise: np.ndarray, place: int, size: int) -> np.ndarray:
    first = place * 31 % (len(noise) - BLOCK // 2)
    return noise[first : first + size]


def merge_text(method: str, folder: Path) -> str:
    models = [
        {"model": str(folder / name), "parameters": {key: v[i] for key, v in values.items()}}
        for values in [METHODS[method]]
        for i, name in enumerate(EXPERTS)
    ]
    data = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method != "linear":
        data["base_model"] = str(folder / "base")
    return json.dumps(data)


def resident(process: int) -> int:
    """Bytes of the resident sets of a process and its children."""
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):  # it has just ended
        return 0
    return own * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


def measured(method: str, folder: Path, threads: int) -> tuple[float, float]:
    """Seconds and peak GB of a merge."""
    file, out = folder / "merge.yaml", folder / "out"
    file.write_text(merge_text(method, folder), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    environment["EVOMERGE_CACHE"] = str(folder / f"cache-{method}")
    command = [sys.executable, "-m", "evomerge", "merge", str(file), "--to", str(out)]
    most, start = 0, time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while child.poll() is None:
            most = max(most, resident(child.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read().decode()[-2000:]}")
    shutil.rmtree(out)
    return seconds, most / 1e9


def statistics_of_70_b() -> dict[str, float]:
    """Method → GB of the statistics of a base and three experts, as `evomerge check` tells it."""
    import torch
    from transformers import LlamaConfig

    from evomerge.materialize.kernel import Kernel
    from evomerge.models.layout import derive_layout
    from evomerge.preflight.estimate_merging import estimate_merging
    from evomerge.recipe import Merge, Recipe, Slot

    names = ("base", *EXPERTS)
    layout = derive_layout(LlamaConfig(**{**config_of(DEPTH), "architectures": None}))
    groups = [(None, group) for group in layout.outside_groups]
    groups += [(layer, "layer") for layer in range(layout.layers)]
    found = {}
    for method in STATISTICS:
        recipe = Recipe(
            sources=dict.fromkeys(names, ""),
            path=tuple(Slot(source="base", layer=layer) for layer in range(layout.layers)),
            merges=tuple(
                Merge(slot=slot, group=group, method=method, experts={n: {} for n in EXPERTS})
                for slot, group in groups
            ),
        )
        dtypes = dict.fromkeys(names, torch.bfloat16)
        cost = estimate_merging(recipe, layout, dtypes, Kernel({}), torch.bfloat16)
        found[method] = cost.statistics / 1e9
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["linear", "ties"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=6.0, help="GB")
    parser.add_argument("--folder", help="where the models are written for a while")
    parser.add_argument("--no-plans", dest="plans", action="store_false", help="merges only")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    missed = False
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            parameters = save(Path(name), layers)
            for method in arguments.methods:
                seconds, peak = measured(method, Path(name), arguments.threads)
                before = [float(row["GB"]) for row in rows if row["method"] == method]
                missed |= peak > arguments.limit or any(peak > 1.1 * one for one in before)
                rows.append({"method": method, "layers": layers, "parameters": parameters})
                rows[-1] |= {"seconds": seconds, "GB": peak}
                if not arguments.json:
                    print(
                        f"{method:16} {layers} layers, {parameters / 1e9:.1f} B parameters: "
                        f"{peak:.2f} GB at most, {seconds:.0f} s",
                        flush=True,
                    )
    found: dict[str, object] = {"merges": rows}
    if arguments.plans:
        from hardware import reckon

        plan = reckon("7 B", "24 GB (RTX 4090)")
        found["plan"] = {"GB": plan.gigabytes, "batch": plan.batch, "sources": plan.sources}
        found["statistics"] = statistics_of_70_b()
        if not arguments.json:
            print(
                f"7 B on a GPU of 24 GB: {plan.gigabytes:.0f} GB with batches of {plan.batch}, "
                f"sources {plan.sources}"
            )
            for method, size in found["statistics"].items():
                print(f"statistics of 70 B, base and three experts, {method}: {size:.2f} GB")
    if arguments.json:
        print(json.dumps(found))
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
