"""A candidate's turn-around, weights in and answers out, by engines that keep a model and without.

Run `python benchmarks/serving_engines.py` in the environment of `make test-vllm`. A random Llama of
four layers of width 256 with heads of 32, float32, a base and two experts, task arithmetic; every
candidate is new. In turn, on the same recipes and prompts:

- `vllm`, `hf`: those engines, in this process;
- `api`: a vLLM server that is told to load a folder into the model that it has;
- `rebuilt`: a folder, and lm-eval's own vLLM model built from it for every candidate, as
  mergekit-evolve does; in a process that lives on, so that imports are not counted.

Printed are medians, ratios to `vllm`, and which share of the answers is that of `hf`. Of the others
it is counted how many part from `hf`'s where two tokens are all but equally likely (`TIE`), which
rounding decides, and how many elsewhere: of `vllm`'s none may. A server and lm-eval's vLLM model
look for stop strings behind the prompt, `hf` in the answer alone, where the first word has no space
before it: the stop string of this benchmark ends some of their answers there, and none of `hf`'s.
`--eager` leaves vLLM's compilation out, which `rebuilt` gains most by.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import numpy as np
import requests
import torch
import yaml
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.campaign.setup import Setup, prepare
from evomerge.config import load_campaign
from evomerge.fitness.engines import Engine, EngineContext
from evomerge.fitness.engines.api import Api
from evomerge.fitness.engines.hf import HuggingFace
from evomerge.fitness.engines.vllm import Vllm
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.materialize.kernel import Kernel
from evomerge.recipe import BASE, Recipe

EXPERTS = ("first", "second")
VOCABULARY, LONGEST, TOKENS = 4000, 512, 64
UNTIL = [" w9"]  # begins a word in 36
TIE = 1e-3
"""Difference of two logits that rounding may turn round; it moves single ones by some 1e-5."""
Side = Callable[[Recipe], list[str]]
"""Loads a candidate and returns its answers."""


def save_campaign(folder: Path, hidden: int, layers: int) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=LONGEST,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>"])}
    words |= {f"w{i}": i for i in range(len(words), VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters() / 1e6:.1f} M parameters")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for name in (BASE, *EXPERTS):
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape) * 0.03 * (name != BASE)
            parameter.data.copy_(start[key] + noise)
        model.save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    (folder / "tasks").mkdir()
    lines = [json.dumps({"q": f"w{i}", "target": "w5"}) for i in range(30)]
    (folder / "tasks" / "say.jsonl").write_text("\n".join(lines) + "\n")
    task = {
        "task": "say",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "say.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": UNTIL, "max_gen_toks": TOKENS},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tasks" / "say.yaml").write_text(yaml.safe_dump(task))
    data = {
        "name": "serving",
        "models": {"base": "models/base", "experts": {n: f"models/{n}" for n in EXPERTS}},
        "space": {"weights": {"method": "task_arithmetic", "genes": {"weight": [0, 1.5]}}},
        "fitness": {
            "include_path": "tasks",
            "tasks": [{"task": "say", "num_fewshot": 0, "metric": "exact_match"}],
            "splits": {"search": 10, "select": 10, "test": 10},
        },
        "dtype": {"compute": "float32"},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def asked(count: int) -> list[Instance]:
    draw = random.Random(0)
    settings = {"until": UNTIL, "max_gen_toks": TOKENS, "do_sample": False}
    prompts = [
        " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(draw.randint(30, 90)))
        for _ in range(count)
    ]
    return [Instance("generate_until", {}, (p, settings), i) for i, p in enumerate(prompts)]


def engine_side(engine: Engine, instances: list[Instance]) -> Side:
    def turn(recipe: Recipe) -> list[str]:
        engine.load(recipe)
        return [str(one.value) for one in engine.answer(instances)]

    return turn


@contextmanager
def served(folder: Path, eager: bool) -> Iterator[str]:
    """Yield the root address of a vLLM server that holds the base model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    words += [folder / "models" / BASE, "--served-model-name", "candidate", "--dtype", "float32"]
    words += ["--host", "127.0.0.1", "--port", port, "--max-model-len", LONGEST]
    words += ["--enforce-eager"] * eager
    # its engine in a process of its own, as servers have it
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (folder / "server.log").open("w") as log:
        running = subprocess.Popen(
            [*map(str, words)], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        while True:
            if running.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            except requests.ConnectionError:
                pass
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait()


@contextmanager
def rebuilding(folder: Path, answers: int, eager: bool, write: Callable) -> Iterator[Side]:
    """Yield what writes a folder and has another process build lm-eval's vLLM model from it."""
    words = [sys.executable, __file__, "--answers", str(answers), "--stock"]
    running = subprocess.Popen(
        words + ["--eager"] * eager, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdin
    assert running.stdout
    running.stdout.readline()  # it has imported everything

    def turn(recipe: Recipe) -> list[str]:
        place = Path(tempfile.mkdtemp(dir=folder)) / "candidate"
        write(recipe, place)
        print(place, file=running.stdin, flush=True)
        return json.loads(running.stdout.readline())

    try:
        yield turn
    finally:
        running.terminate()
        running.wait()


def stock(answers: int, eager: bool) -> None:
    """Answer with lm-eval's vLLM model, built anew from each folder that is named on stdin."""
    import gc
    from importlib import metadata

    version = metadata.version
    try:
        version("vllm")
    except metadata.PackageNotFoundError:  # lm-eval asks for the package for GPUs
        cpu = version("vllm-cpu") + "+cpu"  # as vLLM calls it itself
        metadata.version = lambda name: cpu if name == "vllm" else version(name)
    from lm_eval.models.vllm_causallms import VLLM

    instances, said = asked(answers), sys.stdout
    print("ready", file=said, flush=True)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            lm = VLLM(
                line.strip(), dtype="float32", max_model_len=LONGEST, enforce_eager=eager, seed=0
            )
            texts = lm.generate_until(instances, disable_tqdm=True)
        print(json.dumps(texts), file=said, flush=True)
        del lm
        gc.collect()


def lead(engine: HuggingFace, exact: LlamaForCausalLM, prompt: str, *texts: str) -> float:
    """Return by how much the likeliest token leads where two answers to a prompt part."""
    lm = engine.lm
    before = lm.tok_batch_encode([prompt])[0][0].tolist()
    one, other = (lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    pairs = enumerate(zip(one, other))  # noqa: B905 -- one may be the other's beginning
    alike = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    with torch.no_grad():
        logits = exact(torch.tensor([before + one[:alike]])).logits[0, -1]
    first, second = logits.topk(2).values.tolist()
    return first - second


def compare(
    setup: Setup, sides: dict[str, Side], repeats: int, hf: HuggingFace, asked: list[Instance]
) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    same: dict[str, list[float]] = {name: [] for name in sides}
    leads: dict[str, list[float]] = {name: [] for name in sides}
    rng = np.random.default_rng(0)
    for turn in range(repeats + 1):  # the first warms up
        recipe = setup.space.decode(rng.random(setup.space.dimension))
        found = {}
        for name, side in sides.items():
            start = time.perf_counter()
            found[name] = side(recipe)
            if turn:
                seconds[name].append(time.perf_counter() - start)
        exact = copy.deepcopy(hf.lm.model).double()
        for name, texts in found.items():
            pairs = [(a.lstrip(), b.lstrip()) for a, b in zip(texts, found["hf"], strict=True)]
            same[name].append(sum(a == b for a, b in pairs) / len(pairs))
            leads[name] += [
                lead(hf, exact, one.args[0], *pair)
                for one, pair in zip(asked, pairs, strict=True)
                if pair[0] != pair[1]
            ]
        shown = ", ".join(f"{n} {s[-1]:.1f} s" for n, s in seconds.items() if s)
        lengths = statistics.mean(len(text.split()) for text in found["hf"])
        print(f"  {shown or 'warm'}; {lengths:.0f} tokens an answer", flush=True)
    own = statistics.median(seconds["vllm"])
    for name in sides:
        median = statistics.median(seconds[name])
        print(
            f"{name:8} {median:7.2f} s, {median / own:6.2f} × vllm, "
            f"{statistics.mean(same[name]):.1%} of the answers those of hf; of the other "
            f"{len(leads[name])} {sum(one < TIE for one in leads[name])} part at a tie, "
            f"{sum(one >= TIE for one in leads[name])} elsewhere"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--stock", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stock:
        return stock(args.answers, args.eager)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setup = prepare(load_campaign(save_campaign(folder, args.hidden, args.layers)))
        sources, instances = setup.models.sources, asked(args.answers)

        def write(recipe: Recipe, to: Path) -> Path:
            return write_checkpoint(recipe, setup.models, setup.config.dtype, to)

        context = EngineContext(setup.config, sources[BASE], Kernel(sources), "float32", write, {})
        with (
            served(folder, args.eager) as root,
            rebuilding(folder, args.answers, args.eager, write) as rebuilt,
        ):
            api = Api(
                context,
                url=f"{root}/v1/completions",
                checkpoint=str(folder / "candidate"),
                reload={"vllm": root},
                args={"num_concurrent": 32, "batch_size": 8},
            )
            engines = {
                "hf": HuggingFace(context),
                "vllm": Vllm(context, enforce_eager=args.eager),
                "api": api,
            }
            sides = {name: engine_side(engine, instances) for name, engine in engines.items()}
            hf = engines["hf"]
            assert isinstance(hf, HuggingFace)
            compare(setup, {**sides, "rebuilt": rebuilt}, args.repeats, hf, instances)


if __name__ == "__main__":
    main()
