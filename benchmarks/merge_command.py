"""`evomerge merge` against `mergekit-yaml` on one job: wall time and peak memory, as processes.

Run `python benchmarks/merge_command.py`. A Llama of `--parameters` (0.5 B) with random bf16
weights, a base and two experts that are the base plus noise, in safetensors; both commands read the
same mergekit file and write a checkpoint, in turn, `--repeats` times; medians. Every run is a new
process, with its imports, on `--threads` threads. Peak memory is the largest resident set, pages of
mapped files included. The first run of each command and method (page cache, compiled kernels) is
not counted where there are several. Exits with 1 when evomerge is slower or larger.
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
    "ties": {"weight": [0.6, 0.4], "density": [0.3, 0.5]},
}
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
    models = [
        {"model": str(folder / name), "parameters": {key: v[i] for key, v in values.items()}}
        for i, name in enumerate(EXPERTS)
    ]
    data = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method != "linear":
        data["base_model"] = str(folder / "base")
        data["parameters"] = {"normalize": False}
    return json.dumps(data)


def measured(command: list[str], threads: int) -> tuple[float, float]:
    """Wall seconds and peak MiB of a command.

    Raises:
        SystemExit: it failed; with what it said.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read().decode()[-2000:]}")
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
            found[name].append(measured(command, arguments.threads))
            shutil.rmtree(out)
    row: dict[str, float | str] = {"method": method}
    for name, runs in found.items():
        counted = runs[1:] or runs
        row[f"{name} seconds"] = statistics.median(seconds for seconds, _ in counted)
        row[f"{name} MiB"] = max(mib for _, mib in counted)
    row["time"] = float(row["mergekit seconds"]) / float(row["evomerge seconds"])
    row["memory"] = float(row["mergekit MiB"]) / float(row["evomerge MiB"])
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", type=float, default=0.5e9)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        saved = subprocess.run(
            [sys.executable, "-c", SAVE, name, str(arguments.parameters), "base", *EXPERTS],
            check=True,
            capture_output=True,
            text=True,
        )
        parameters = int(saved.stdout.split()[-1])
        rows = [compare(method, Path(name), arguments) for method in arguments.methods]
    if arguments.json:
        print(json.dumps({"parameters": parameters, "methods": rows}))
    else:
        show(rows, parameters, arguments.threads)
    return int(any(float(row[key]) < 1 for row in rows for key in ("time", "memory")))


def show(rows: list[dict[str, float | str]], parameters: int, threads: int) -> None:
    print(f"{parameters / 1e6:.0f} M parameters, base + 2 experts in bf16, {threads} threads")
    print(f"{'':16} evomerge          mergekit-yaml     time   memory")
    for row in rows:
        print(
            f"{row['method']:16} {row['evomerge seconds']:6.1f} s {row['evomerge MiB']:5.0f} MiB "
            f"{row['mergekit seconds']:6.1f} s {row['mergekit MiB']:5.0f} MiB "
            f"{row['time']:6.2f}x {row['memory']:6.2f}x"
        )


if __name__ == "__main__":
    raise SystemExit(main())
