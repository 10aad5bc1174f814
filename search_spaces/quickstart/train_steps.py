"""Train models that take one step of a computation in one pass, and write their tasks.

The task is to follow pointers: a prompt says where each of eight symbols points, and asks for the
root that one of them leads to (a root points to itself). The models are trained to take one step
for every time that a block of two layers is run, so that no weights, however merged, follow two
pointers in one pass: that takes a path which repeats the block. The script builds

* ``zoo/steps``, a base that takes one or two steps, among letters and among digits;
* ``zoo/letters`` and ``zoo/digits``, experts that take up to four, each with its own symbols;
* ``tasks/roots_letters.yaml`` and ``tasks/roots_digits.yaml`` with their data.

Run ``python train_steps.py`` to rebuild everything in place, or ``--out DIR`` to write elsewhere.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import ModuleList
from torch.nn.functional import cross_entropy
from train import SPECIAL, Row, install, make_tokenizer, save_models, save_task
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent

# ---------------------------------------------------------------------------------------
# Symbols and pointers.

ALPHABETS = {"letters": "a b c d e f g h".split(), "digits": "1 2 3 4 5 6 7 8".split()}
N_SYMBOLS = 8
#: Steps from the symbol that is asked about to its root, in the tasks.
DEPTHS = (1, 2, 3, 4)

WORDS = [*SPECIAL, *ALPHABETS["letters"], *ALPHABETS["digits"], ";", "from", "is"]
TOKEN = {word: i for i, word in enumerate(WORDS)}

Pointers = dict[int, int]


def draw_pointers(rng: random.Random, depth: int, test: bool) -> tuple[Pointers, int]:
    """Pointers among the symbols, and a symbol whose root is `depth` steps away."""
    while True:
        order = rng.sample(range(N_SYMBOLS), N_SYMBOLS)
        chain, others = order[: depth + 1], order[depth + 1 :]
        to = dict(zip(chain, [*chain[1:], chain[-1]], strict=True))
        for symbol in others:
            to[symbol] = rng.choice([*to, symbol]) if rng.random() < 0.8 else symbol
        if held_out(to) is test:
            return to, chain[0]


def held_out(to: Pointers) -> bool:
    """Whether pointers are reserved for evaluation (one in eight, by hash)."""
    text = " ".join(str(to[symbol]) for symbol in range(N_SYMBOLS))
    return hashlib.sha256(text.encode()).digest()[0] % 8 == 0


def follow(to: Pointers, symbol: int, steps: int) -> int:
    """Where so many steps lead."""
    for _ in range(steps):
        symbol = to[symbol]
    return symbol


def spell(to: Pointers, words: Sequence[str], rng: random.Random) -> list[str]:
    """The pointers in a random order: `b d ; a c ; …`."""
    pairs = rng.sample(list(to), N_SYMBOLS)
    return [word for x in pairs for word in (words[x], words[to[x]], ";")]


# ---------------------------------------------------------------------------------------
# Model and training.

BEFORE, BLOCK, AFTER = 2, 2, 1
N_LAYERS = BEFORE + BLOCK + AFTER


def looped(times: int) -> list[int]:
    """The layers of a pass that runs the block so many times."""
    block = range(BEFORE, BEFORE + BLOCK)
    return [*range(BEFORE), *(layer for _ in range(times) for layer in block), N_LAYERS - 1]


def new_model(seed: int) -> LlamaForCausalLM:
    """Build a randomly initialised model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=TOKEN["<pad>"],
        bos_token_id=TOKEN["<bos>"],
        eos_token_id=TOKEN["<eos>"],
    )
    return LlamaForCausalLM(config)


@contextmanager
def running(model: LlamaForCausalLM, path: Sequence[int]) -> Iterator[None]:
    """Let the model run its layers in this order."""
    inner, own = model.model, model.model.layers
    inner.layers = ModuleList([own[layer] for layer in path])
    inner.config.num_hidden_layers = len(path)
    try:
        yield
    finally:
        inner.layers, inner.config.num_hidden_layers = own, len(own)


def draw_batch(
    rng: random.Random, alphabets: Sequence[str], steps: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts that ask about every symbol in turn, and where so many steps from each lead.

    Returns:
        Token ids, (size, 1 + 3·8 + 3·8) int64; answers' ids, (size, 8) int64.
    """
    rows, answers = [], []
    for _ in range(size):
        words = ALPHABETS[rng.choice(alphabets)]
        to, _ = draw_pointers(rng, rng.choice([*DEPTHS, 5]), test=False)
        asked = rng.sample(range(N_SYMBOLS), N_SYMBOLS)
        questions = [word for x in asked for word in ("from", words[x], "is")]
        prompt = ["<bos>", *spell(to, words, rng), *questions]
        rows.append([TOKEN[word] for word in prompt])
        answers.append([TOKEN[words[follow(to, x, steps)]] for x in asked])
    return torch.tensor(rows), torch.tensor(answers)


#: Positions of the answers in a batch.
ASKED = [3 * N_SYMBOLS + 3 * (i + 1) for i in range(N_SYMBOLS)]


def train(
    model: LlamaForCausalLM,
    name: str,
    alphabets: Sequence[str],
    *,
    steps: int,
    most: int,
    lr: float,
    first: int = 0,
    seed: int = 0,
) -> None:
    """Train to take 1 to `most` steps, one for each time the block runs; only 1 at `first`."""
    rng = random.Random(f"{seed} {name}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, max(0.05, 1 - step / steps))
    )
    began, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        times = 1 if step < first else rng.randint(1, most)
        ids, answers = draw_batch(rng, alphabets, times, size=48)
        with running(model, looped(times)):
            logits = model(input_ids=ids, use_cache=False).logits[:, ASKED]
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.item())
        if step % 100 == 0:
            recent = sum(losses[-100:]) / 100
            print(f"{name}: step {step}, loss {recent:.3f}, {time.monotonic() - began:.0f} s")


# ---------------------------------------------------------------------------------------
# Evaluation tasks.


def make_task(name: str, count: int, seed: int) -> list[Row]:
    """Items with four choices: the root, where one step leads (if elsewhere), and others."""
    rng, words = random.Random(f"{seed} {name}"), ALPHABETS[name]
    rows: list[Row] = []
    seen = set()
    while len(rows) < count:
        depth = DEPTHS[len(rows) % len(DEPTHS)]
        to, start = draw_pointers(rng, depth, test=True)
        prompt = " ".join([*spell(to, words, rng), "from", words[start], "is"])
        root = follow(to, start, depth)
        near = [to[start]] if depth > 1 else []
        others = [x for x in range(N_SYMBOLS) if x not in (root, *near)]
        choices = [root, *near, *rng.sample(others, 3 - len(near))]
        rng.shuffle(choices)
        if prompt in seen:
            continue
        seen.add(prompt)
        rows.append(
            {
                "prompt": prompt,
                "steps": depth,
                "choices": [words[x] for x in choices],
                "answer": choices.index(root),
            }
        )
    rng.shuffle(rows)
    return rows


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, rows: list[Row], path: Sequence[int]) -> float:
    """Multiple-choice accuracy along a path."""
    ids = torch.tensor([[TOKEN[w] for w in ["<bos>", *row["prompt"].split()]] for row in rows])
    with running(model, path):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
    choices = torch.tensor([[TOKEN[word] for word in row["choices"]] for row in rows])
    right = torch.tensor([row["answer"] for row in rows])
    return (logits.gather(1, choices).argmax(1) == right).double().mean().item()


# ---------------------------------------------------------------------------------------
# Output.


def average(
    base: LlamaForCausalLM, experts: Sequence[LlamaForCausalLM], weight: float
) -> LlamaForCausalLM:
    """The base plus the experts' task vectors, all by one weight."""
    merged = copy.deepcopy(base)
    for key, value in merged.state_dict().items():
        taus = [expert.state_dict()[key] - base.state_dict()[key] for expert in experts]
        value += weight * sum(taus)
    return merged


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    base = new_model(args.seed)
    train(base, "steps", list(ALPHABETS), steps=1000, most=2, lr=3e-3, first=450, seed=args.seed)
    zoo = {"steps": base}
    for name in ALPHABETS:
        zoo[name] = copy.deepcopy(base)
        train(zoo[name], name, [name], steps=500, most=4, lr=1e-3, seed=args.seed)
    zoo = {name: model.half().float() for name, model in zoo.items()}
    tasks = {name: make_task(name, 300, args.seed) for name in ALPHABETS}

    rows = dict(zoo)
    for weight in (0.5, 0.75, 1.0):
        experts = [zoo[name] for name in ALPHABETS]
        rows[f"all layers {weight}"] = average(zoo["steps"], experts, weight)
    print(f"{'accuracy, block run once and four times':40}" + "".join(f"{n:>18}" for n in tasks))
    for name, model in rows.items():
        cells = [
            " ".join(f"{accuracy(model, tasks[task], looped(times)):.3f}" for times in (1, 4))
            for task in tasks
        ]
        print(f"{name:40}" + "".join(f"{cell:>18}" for cell in cells))

    args.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".build-", dir=args.out))
    try:
        save_models(scratch, zoo, make_tokenizer(TOKEN))
        for name, items in tasks.items():
            save_task(scratch, f"roots_{name}", "multiple_choice", items)
        install(scratch, args.out)
    finally:
        shutil.rmtree(scratch)
    print(f"wrote {args.out / 'zoo'} and {args.out / 'tasks'}")


if __name__ == "__main__":
    main()
