"""`evomerge merge` against `mergekit-yaml` on one job: time and peak memory, as processes.

Run `python benchmarks/merge_command.py`. A Llama of `--parameters` (0.5 B) with random bf16
weights, a base and two experts that are the base plus noise, in safetensors; both commands read the
same mergekit file and write a checkpoint, in turn, `--repeats` times; medians. Every run is a new
process, with its imports, on `--threads` threads. Peak memory is the largest resident set, pages of
mapped files included. `--clock cpu` counts processor time of the process and its children, which
other work on the machine disturbs less.

evomerge remembers digests of unchanged files, and what transformers says of a config. Its first run
of each method finds nothing remembered: it is `first`, and the others are `again`. mergekit's first
run is not counted where there are several. Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# This process imports no torch: what a child is said to hold at most is at least what its parent
# held when it started it.

METHODS = {
    "linear": {"weight": [0.6, 0.4]},
    "task_arithmetic": {"weight": [0.6, 0.4]},
    "slerp": {},
    "ties": {"weight": [0.6, 0.4], "density": [0.3, 0.5]},
}
BARS = {"linear": 1.3, "task_arithmetic": 1.3, "slerp": 1.3, "ties": 4.0}
"""mergekit's time over that of evomerge's second run."""
MEMORY = 3.0
"""mergekit's peak memory over evomerge's."""
EXPERTS = ("first", "second")
SCRIPTS = Path(sys.executable).parent

SAVE = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

folder, parameters = Path(sys.argv[1]), float(sys.argv[2])
hidden, vocabulary = 1024, 32000
inner = 2816
layer = 4 * hidden**2 + 3 * hidden * inner
layers = max(1, round((parameters - vocabulary * hidden) / layer))
config = LlamaConfig(
    vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner,
    num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=16,
    tie_word_embeddings=True, dtype=torch.bfloat16,
)
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
model = LlamaForCausalLM(config)
noise = torch.randn(1 << 22, dtype=torch.float32)
base = {n: p.detach().clone() for n, p in model.named_parameters()}
for seed, name in enumerate(sys.argv[3:]):
    for n, parameter in model.named_parameters():
        value = base[n]
        if seed:
            where = torch.arange(value.numel()) * (2 * seed + 1) % len(noise)
            change = noise[where].view(value.shape) * 0.1 * value.float().std().clamp(0.01)
            value = value + change.to(value.dtype)
        parameter.data.copy_(value)
    model.save_pretrained(folder / name, max_shard_size="5GB")
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, vocabulary)}}
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / name)
print(sum(p.numel() for p in model.parameters()))
"""


def mergekit_text(method: str, folder: Path) -> str:
    """The file that both read; JSON is YAML."""
    values = METHODS[method]
    if method == "slerp":
        models = [{"model": str(folder / name)} for name in ("base", EXPERTS[0])]
        data = {"merge_method": method, "models": models, "base_model": models[0]["model"]}
        return json.dumps({**data, "parameters": {"t": 0.4}, "dtype": "bfloat16"})
    models = [
        {"model": str(folder / name), "parameters": {key: v[i] for key, v in values.items()}}
        for i, name in enumerate(EXPERTS)
    ]
    data = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method != "linear":
        data["base_model"] = str(folder / "base")
        data["parameters"] = {"normalize": False}
    return json.dumps(data)


def measured(command: list[str], threads: int, cache: Path, clock: str) -> tuple[float, float]:
    """Seconds and peak MiB of a command.

    Raises:
        SystemExit: it failed; with what it said.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    environment["EVOMERGE_CACHE"] = str(cache)
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read().decode()[-2000:]}")
    if clock == "cpu":
        seconds = usage.ru_utime + usage.ru_stime
    return seconds, usage.ru_maxrss / 1024


def compare(method: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float | str]:
    file, out = folder / f"{method}.yaml", folder / "out"
    file.write_text(mergekit_text(method, folder), encoding="utf-8")
    commands = {
        "evomerge": [sys.executable, "-m", "evomerge", "merge", str(file), "--to", str(out)],
        "mergekit": [str(SCRIPTS / "mergekit-yaml"), str(file), str(out)],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            cache = folder / f"cache-{method}"
            found[name].append(measured(command, arguments.threads, cache, arguments.clock))
            shutil.rmtree(out)
    row: dict[str, float | str] = {"method": method, "first seconds": found["evomerge"][0][0]}
    for name, runs in found.items():
        counted = runs[1:] or runs
        row[f"{name} seconds"] = statistics.median(seconds for seconds, _ in counted)
        row[f"{name} MiB"] = max(mib for _, mib in runs)
    theirs = float(row["mergekit seconds"])
    row["first"] = theirs / float(row["first seconds"])
    row["time"] = theirs / float(row["evomerge seconds"])
    row["memory"] = float(row["mergekit MiB"]) / float(row["evomerge MiB"])
    row["bar"] = BARS[method]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=float, default=0.5e9)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the models are written for a while")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        saved = subprocess.run(
            [sys.executable, "-c", SAVE, name, str(arguments.parameters), "base", *EXPERTS],
            check=True,
            capture_output=True,
            text=True,
        )
        parameters = int(saved.stdout.split()[-1])
        os.sync()  # evomerge brings its result to the disk, mergekit does not: both find it idle
        rows = [compare(method, Path(name), arguments) for method in arguments.methods]
    if arguments.json:
        print(json.dumps({"parameters": parameters, "methods": rows}))
    else:
        show(rows, parameters, arguments.threads)
    missed = (float(row["time"]) < BARS[str(row["method"])] for row in rows)
    return int(any(missed) or any(float(row["memory"]) < MEMORY for row in rows))


def show(rows: list[dict[str, float | str]], parameters: int, threads: int) -> None:
    print(f"{parameters / 1e6:.0f} M parameters, base + 2 experts in bf16, {threads} threads")
    print(f"{'':16} evomerge: first  again             mergekit-yaml     first   again   memory")
    for row in rows:
        print(
            f"{row['method']:16} {row['first seconds']:13.1f} s "
            f"{row['evomerge seconds']:6.1f} s {row['evomerge MiB']:5.0f} MiB "
            f"{row['mergekit seconds']:6.1f} s {row['mergekit MiB']:5.0f} MiB "
            f"{row['first']:6.2f}x {row['time']:6.2f}x {row['memory']:6.2f}x"
        )


if __name__ == "__main__":
    raise SystemExit(main())
