"""The time to make one candidate: evomerge against mergekit's `merge_tensors`, tensor by tensor.

Run `python benchmarks/materialize.py`. A Llama of 68 M parameters (20 layers of hidden 512, MLP
1536), a random base and three experts that are the base plus noise, all bf16 safetensors in the
page cache, mapped. One candidate has its own weight (and density) per expert.

- evomerge: `plan` and `Kernel.fill_all` of its tensors, as a worker does it: arithmetic in float32,
  every value rounded to bf16, checked to be finite and written into resident parameters. These are
  float32, the CPU's default for scoring, and so twice mergekit's output; `--compute bfloat16` for
  bf16 ones.
- mergekit: `merge_tensors` for every tensor on the same mapped tensors, the base among them, as
  bf16 arithmetic (its default for bf16 inputs) and with `dtype=float32, out_dtype=bfloat16`; the
  ratio is taken to the faster of the two.

Both in turn in one process, ours five times a round and mergekit once in each mode, the first round
(page cache, statistics of the sources) not counted, median of the others. Where no mask is random,
the results are compared before anything is timed. "The floor" is reading four models and writing
one at this machine's copy bandwidth. Exits with 1 when a bar is missed.

`--alone` leaves mergekit out, takes in the methods that decompose matrices, and says what bounds a
candidate: its time in floors, on all threads; the bandwidth of memory up to `NEAR` floors, else
computing where one thread takes `SHARED` times as long or longer, else what one thread does alone.
`--hidden 1280 --layers 24` has 0.5 B parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command `evomerge` sets it; for both sides

import torch
from mergekit.merge_methods import merge_tensors
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.methods import find_method
from evomerge.methods.core.sparsify import breadcrumbs
from evomerge.methods.core.trim import trims
from evomerge.methods.core.view import whole_view
from evomerge.methods.sce import selected, variance
from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.recipe import BASE, Merge, Recipe, Slot

EXPERTS = ("first", "second", "third")
WEIGHTS = (0.6, 0.3, 0.4)
DENSITIES = (0.3, 0.5, 0.8)
GAMMAS = (0.01, 0.02, 0.05)
EPSILONS = (0.15, 0.15, 0.15)
BARS = {
    "linear": 3.7,  # mergekit's takes 5.6 floors, of which 1.5 are wanted
    "task_arithmetic": 3.7,
    "slerp": 5.0,
    "ties": 50.0,
    "breadcrumbs": 50.0,
    "sce": 50.0,
    "della": 50.0,
    "dare_ties": 25.0,
}
METHODS = (*BARS, "dare_linear")
DECOMPOSED = ("tsvm", "iso_c", "iso_cts", "twin", "opcm", "wudi", "swudi")
NEAR, SHARED = 2.0, 1.5
RANDOM = ("dare_ties", "dare_linear", "della")
TRIMMED = ("ties", "breadcrumbs", "sce")
BASE_WEIGHT = 0.2
OURS = 5  # candidates in a row; mergekit's TIES takes 40 times as long as one of ours


def save_models(
    folder: Path, layers: int, experts: Sequence[str] = EXPERTS, hidden: int = 512
) -> None:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    for name in (BASE, *experts):
        if name != BASE:
            for parameter, value in zip(model.parameters(), base.values(), strict=False):
                noise = torch.randn(value.shape) * 0.1 * value.float().std().clamp(0.01)
                parameter.data.copy_(value + noise)
        model.save_pretrained(folder / name)


def recipe_of(method: str, sources: dict[str, Checkpoint]) -> Recipe:
    layout = sources[BASE].layout
    names = EXPERTS[:1] if method == "slerp" else EXPERTS
    experts: dict[str, dict[str, float]] = {name: {} for name in names}
    drawn = {"weight": WEIGHTS, "density": DENSITIES, "gamma": GAMMAS, "epsilon": EPSILONS}
    for parameter, values in drawn.items():
        known = find_method(method, "benchmark").parameters.get(parameter)
        if known is not None and known.per_expert:
            for name, value in zip(names, values, strict=True):
                experts[name][parameter] = value
    parameters = {"linear": {"base_weight": BASE_WEIGHT}, "slerp": {"t": 0.4}}.get(method, {})
    groups = [(None, group) for group in layout.outside_groups]
    groups += [(layer, "layer") for layer in range(layout.layers)]
    return Recipe(
        sources=dict.fromkeys(sources, "unused"),
        path=tuple(Slot(source=BASE, layer=layer) for layer in range(layout.layers)),
        merges=tuple(
            Merge(slot=slot, group=group, method=method, experts=experts, parameters=parameters)
            for slot, group in groups
        ),
    )


def mergekit_of(
    method: str, sources: dict[str, Checkpoint], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    names = (BASE, EXPERTS[0]) if method == "slerp" else (BASE, *EXPERTS)
    parameters: dict[str, object] = {"weight": list(WEIGHTS)}
    if method == "linear":
        parameters = {"weight": [BASE_WEIGHT, *WEIGHTS], "normalize": True}
    elif method == "slerp":
        parameters = {"t": 0.4}
    elif method == "sce":
        parameters = {"select_topk": 0.1}
    elif method == "task_arithmetic":
        parameters |= {"normalize": False}
    else:
        normalize = method not in ("dare_linear", "breadcrumbs")
        parameters |= {"density": list(DENSITIES), "normalize": normalize}
    if method == "breadcrumbs":
        parameters |= {"gamma": list(GAMMAS)}
    if method == "della":
        parameters |= {"epsilon": list(EPSILONS)}
    return {
        name: merge_tensors(
            [sources[source].read(name) for source in names],
            method,
            parameters=parameters,
            base_index=None if method == "linear" else 0,
            dtype=dtype,
            out_dtype=torch.bfloat16,
        )
        for name in sources[BASE].names()
    }


def check(
    method: str,
    sources: dict[str, Checkpoint],
    ours: dict[str, torch.Tensor],
    theirs: dict[str, torch.Tensor],
) -> None:
    """Refuse results that differ by more than bf16's rounding, entries tied at a trim aside.

    SCE's weights are the energies of the entries it selects: tied ones, in or out, move them, and
    mergekit takes equal ones where all are small.
    """
    for name, value in theirs.items():
        size = value.float().abs()
        allowed = 2**-7 * size + 1e-6
        if method == "sce":
            allowed += 2**-8 * (size + sources[BASE].read(name).float().abs())
        gap = (ours[name].float() - value.float()).abs() > allowed
        if method in TRIMMED:
            gap &= ~tied(method, sources, name)
        if gap.any():
            raise SystemExit(f"{method}: {name} differs from mergekit's")


def tied(method: str, sources: dict[str, Checkpoint], name: str) -> torch.Tensor:
    """Entries at a trim's threshold: among tied ones mergekit chooses at will."""
    base, *experts = (sources[source].read(name).float() for source in (BASE, *EXPERTS))
    view = whole_view(base, experts)
    if method == "sce":
        spread = variance([e - base for e in experts])
        threshold = selected(view, select_topk=0.1).trim.threshold
        return (spread - threshold).abs() <= 1e-5 * threshold  # its variance is rounded otherwise
    cuts = [[cut] for cut in trims(view, density=DENSITIES)]
    if method == "breadcrumbs":
        found = breadcrumbs.measure(view, density=DENSITIES, gamma=GAMMAS)
        cuts = [list(band) for band in found.experts]
    masks = [
        (expert - base).abs() == cut.threshold
        for expert, both in zip(experts, cuts, strict=True)
        for cut in both
    ]
    return torch.stack(masks).any(0)


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    action()
    return clock() - start


def floor(parameters: int) -> float:
    """Seconds to read four bf16 models and write one, at the best of ten copies of 256 MB."""
    source = torch.ones(1 << 27, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source)) for _ in range(10))
    return best * (5 * parameters) / (2 * source.numel())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=20, help="fewer for a quick look")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *DECOMPOSED))
    parser.add_argument("--alone", action="store_true", help="evomerge's own times, in floors")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = arguments.methods or (*METHODS, *(DECOMPOSED if arguments.alone else ()))
    measure = alone if arguments.alone else compare
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        save_models(Path(name), arguments.layers, hidden=arguments.hidden)
        sources = {n: open_checkpoint(n, f"{name}/{n}") for n in (BASE, *EXPERTS)}
        rows = [measure(method, sources, arguments) for method in chosen]
        layout = sources[BASE].layout
        size = sum(torch.Size(tensor.shape).numel() for tensor in layout.tensors)
    if arguments.json:
        print(json.dumps({"parameters": size, "floor": floor(size), "methods": rows}))
    elif not arguments.alone:
        show(rows, size, arguments)
    return int(any(row.get("bar") and row["ratio"] < row["bar"] for row in rows))


def candidate_of(
    method: str, sources: dict[str, Checkpoint], compute: str
) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
    """What makes a candidate, as a worker does, and the resident parameters it is written into."""
    layout, kernel = sources[BASE].layout, Kernel(sources)
    dtype = getattr(torch, compute)
    resident = {t.name: torch.empty(t.shape, dtype=dtype) for t in layout.tensors}
    recipe = recipe_of(method, sources)

    def candidate() -> None:
        steps = plan(recipe, layout, sources)
        kernel.fill_all([(resident[step.tensor.name], step) for step in steps], recipe.seed)

    return candidate, resident


def alone(
    method: str, sources: dict[str, Checkpoint], arguments: argparse.Namespace
) -> dict[str, object]:
    """A candidate's seconds on all threads and on one, in floors, and what bounds it."""
    candidate, _ = candidate_of(method, sources, arguments.compute)
    size = sum(torch.Size(t.shape).numel() for t in sources[BASE].layout.tensors)
    row: dict[str, object] = {"method": method, "first": seconds(candidate)}
    medians = []
    for threads in (1, arguments.threads):  # on as many as before in the end
        torch.set_num_threads(threads)
        candidate()  # compiled code is made for a number of threads
        medians.append(statistics.median(seconds(candidate) for _ in range(arguments.repeats)))
    one, every = medians
    floors, shared = every / floor(size), one / every
    row |= {"evomerge": every, "one thread": one, "floors": floors}
    row["bound by"] = (
        "bandwidth" if floors <= NEAR else "computing" if shared >= SHARED else "one thread"
    )
    if not arguments.json:
        print(
            f"{method:16} {every:8.3f} s {floors:7.1f} floors, one thread {shared:4.2f} times as "
            f"long: bound by {row['bound by']}; first {row['first']:.1f} s",
            flush=True,
        )
    return row


def compare(
    method: str, sources: dict[str, Checkpoint], arguments: argparse.Namespace
) -> dict[str, object]:
    candidate, resident = candidate_of(method, sources, arguments.compute)
    runs: dict[str, Callable[[], object]] = {
        "evomerge": candidate,
        "mergekit bf16": lambda: mergekit_of(method, sources, None),
        "mergekit fp32": lambda: mergekit_of(method, sources, torch.float32),
    }
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    first = seconds(candidate, clock)
    if method not in RANDOM:
        check(method, sources, resident, mergekit_of(method, sources, torch.float32))
    spent: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(arguments.repeats + 1):
        for key, run in runs.items():
            times = OURS if run is candidate else 1
            spent[key].append(statistics.median(seconds(run, clock) for _ in range(times)))
    median = {key: statistics.median(values[1:]) for key, values in spent.items()}
    ratio = min(median["mergekit bf16"], median["mergekit fp32"]) / median["evomerge"]
    return {"method": method, "first": first, **median, "ratio": ratio, "bar": BARS.get(method)}


def show(rows: list[dict[str, object]], size: int, arguments: argparse.Namespace) -> None:
    print(
        f"{size / 1e6:.1f} M parameters, base + 3 experts in bf16, {arguments.threads} threads, "
        f"{arguments.compute} resident; seconds, median of {arguments.repeats}"
    )
    print(f"{'':16} evomerge (first)  mergekit bf16   fp32   ratio   bar")
    for row in rows:
        bar = f"{row['bar']:4.0f}x" if row["bar"] else ""
        print(
            f"{row['method']:16} {row['evomerge']:8.3f} ({row['first']:5.2f}) "
            f"{row['mergekit bf16']:14.3f} {row['mergekit fp32']:6.3f} "
            f"{row['ratio']:6.1f}x {bar:>5}"
        )
    print(f"floor: four models read and one written at copy bandwidth, {floor(size):.3f} s")


if __name__ == "__main__":
    raise SystemExit(main())
