"""The time to make one candidate on a GPU whose memory holds the sources, against its bandwidth.

Run `python benchmarks/materialize_gpu.py` on a machine with a GPU. Tensors of the shapes of a Llama
of 1.5 B parameters (28 layers of hidden 1536, MLP 8960, 2 of 12 heads for keys and values,
vocabulary 151,936, tied), a random base and three experts that are the base plus noise, all bf16
and on the GPU; the candidate is bf16, too, as candidates on GPUs are. `plan` and `Kernel.fill_all`
of all tensors as a worker does it, histograms known. "The floor" is reading four models and writing
one at the bandwidth at which the GPU copies within its own memory. Medians; times end when the GPU
has done. Exits with 1 when a bar is missed, with 0 where there is no GPU.

`--device cpu --layers 2 --hidden 128 --vocabulary 512` shows that it works, and no more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from transformers import LlamaConfig

from evomerge.common.accelerator import available, device_name, synchronize
from evomerge.materialize.feed import DeviceCache
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.models.layout import Layout, build_skeleton, layout_of
from evomerge.recipe import BASE, Merge, Recipe, Slot

EXPERTS = ("first", "second", "third")
BARS = {"task_arithmetic": 1.5, "ties": 3.0}
"""How many times the floor a candidate may take."""
NUMBERS = {
    "task_arithmetic": {"weight": (0.6, 0.3, 0.4)},
    "ties": {"weight": (0.6, 0.3, 0.4), "density": (0.3, 0.5, 0.8)},
}


@dataclass(frozen=True)
class Invented:
    """As much of a source as a merge reads: random tensors on the device."""

    name: str
    tensors: Mapping[str, torch.Tensor]

    def names(self) -> tuple[str, ...]:
        """Of all tensors."""
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """As `Source.shape`."""
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """As `Source.dtype`."""
        return self.tensors[name].dtype

    def read(self, name: str) -> torch.Tensor:
        """As `Source.read`."""
        return self.tensors[name]


def invented(layout: Layout, device: str) -> dict[str, Invented]:
    torch.manual_seed(0)
    draw = partial(torch.randn, device=device)
    base = {spec.name: (draw(spec.shape) * 0.02).bfloat16() for spec in layout.tensors}
    sources = {BASE: Invented(BASE, base)}
    for name in EXPERTS:
        moved = {n: t + (draw(t.shape) * 0.002).bfloat16() for n, t in base.items()}
        sources[name] = Invented(name, moved)
    return sources


def recipe_of(method: str, layout: Layout, number: int) -> Recipe:
    """One of many candidates: their numbers differ."""
    values = {k: [v * (1 - 0.01 * number) for v in own] for k, own in NUMBERS[method].items()}
    experts = {name: {k: v[i] for k, v in values.items()} for i, name in enumerate(EXPERTS)}
    groups = [(None, group) for group in layout.outside_groups]
    groups += [(layer, "layer") for layer in range(layout.layers)]
    return Recipe(
        sources=dict.fromkeys((BASE, *EXPERTS), "unused"),
        path=tuple(Slot(source=BASE, layer=layer) for layer in range(layout.layers)),
        merges=tuple(Merge(slot=s, group=g, method=method, experts=experts) for s, g in groups),
    )


def seconds(action: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def floor(layout: Layout, device: str) -> float:
    """Seconds to read four bf16 models and write one, at the best of ten copies."""
    entries = sum(torch.Size(spec.shape).numel() for spec in layout.tensors)
    source = torch.ones(1 << 28 if entries > 1 << 28 else 1 << 22, dtype=torch.bfloat16).to(device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(10))
    return best * (5 * entries) / (2 * source.numel())


def measured(
    method: str, layout: Layout, sources: Mapping[str, Invented], arguments: argparse.Namespace
) -> float:
    kernel = Kernel(sources, feed=DeviceCache(sources, arguments.device))  # type: ignore[arg-type]
    out = {t.name: torch.empty_like(sources[BASE].read(t.name)) for t in layout.tensors}
    recipes = (recipe_of(method, layout, number) for number in range(arguments.repeats + 2))
    spent = []
    for recipe in recipes:

        def candidate(recipe: Recipe = recipe) -> None:
            steps = plan(recipe, layout, sources)  # type: ignore[arg-type]
            kernel.fill_all([(out[step.tensor.name], step) for step in steps], recipe.seed)

        spent.append(seconds(candidate, arguments.device))
    return statistics.median(spent[2:])  # the first two compile, and count the histograms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default=available() or "none", help="torch's name, or cpu")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "none":
        print("no GPU here: candidates on a GPU are not timed")
        return 0
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 35 // 6,
        num_hidden_layers=arguments.layers,
        num_attention_heads=12 if arguments.hidden % 12 == 0 else 8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    layout = layout_of(build_skeleton(config, trust_remote_code=False))
    with torch.no_grad():
        sources = invented(layout, arguments.device)
        least = floor(layout, arguments.device)
        found = {name: measured(name, layout, sources, arguments) for name in BARS}
    ratios = {name: value / least for name, value in found.items()}
    if arguments.json:
        print(json.dumps({"floor": least, "seconds": found, "ratios": ratios}))
    else:
        entries = sum(torch.Size(spec.shape).numel() for spec in layout.tensors)
        where = device_name(torch.device(arguments.device))
        print(f"{entries / 1e9:.2f} B parameters, base + 3 experts in bf16, {where}")
        print(f"floor {least * 1e3:.2f} ms")
        for name, value in found.items():
            print(f"{name:16} {value * 1e3:8.2f} ms  {ratios[name]:6.2f}x  bar {BARS[name]:.1f}x")
    return int(any(ratios[name] > bar for name, bar in BARS.items()))


if __name__ == "__main__":
    raise SystemExit(main())
