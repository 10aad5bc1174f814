"""Scoring on a GPU: evomerge's passes against plain transformers, answers compared.

Run `python benchmarks/scoring_gpu.py` on a machine with a GPU. One random Llama of 1.5 B parameters
in bf16 (shapes as in `materialize_gpu.py`) answers the same requests both ways, in one process:

- log-likelihoods of four choices of three tokens behind each of 100 questions, which begin with
  five examples: evomerge reads examples and questions once and computes logits where choices are
  read off; plain transformers reads every choice's row in padded batches and computes all logits,
  as lm-eval's own model does;
- 200 greedy answers of up to 64 tokens: evomerge's loop against `model.generate`, both 64 at once.
  Sixteen words, spread over the vocabulary, end an answer.

Prints seconds (medians), ratios (theirs by ours), tokens a second, and how many answers agree: in
bf16 batches of other shapes round differently, so that not all do.

`--device cpu --small` shows that it works, and no more.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.common.accelerator import available, device_name, synchronize
from evomerge.fitness.inference.local_model import Local, make_lm

SHAPES = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
SMALL = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SPECIAL = ["<s>", "</s>", "<unk>"]
ROWS = 64
"""Rows side by side, of both."""


def word(number: int) -> str:
    """The word of a token; none begins another, for answers are cut at strings."""
    return f"w{number:06}"


def build(small: bool, device: str) -> tuple[Any, Any]:
    """A random model on the device, in bf16, on a CPU in float32; and a tokenizer of words."""
    shapes = SMALL if small else SHAPES
    words = {word: i for i, word in enumerate(SPECIAL)}
    words |= {word(i): i for i in range(len(words), shapes["vocab_size"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=2048,
    )
    config = LlamaConfig(
        **shapes,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        dtype=torch.float32 if device == "cpu" else torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device("cpu" if small else device):
        model = LlamaForCausalLM(config)
    model = model.to(config.dtype).to(device).eval().requires_grad_(False)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return model, tokenizer


def requests(vocabulary: int, small: bool) -> tuple[list[Instance], list[Instance]]:
    """Log-likelihoods and generations, with random words for texts."""
    draw, questions = random.Random(0), 4 if small else 100

    def text(count: int) -> str:
        return " ".join(word(draw.randrange(3, vocabulary)) for _ in range(count))

    examples = " ".join(text(60) for _ in range(1 if small else 5))
    scored: list[Instance] = []
    for _ in range(questions):
        context = f"{examples} {text(draw.randint(20, 60))}"
        for _ in range(4):
            scored.append(_instance("loglikelihood", (context, f" {text(3)}"), len(scored)))
    ends = [word(i) for i in range(3, vocabulary, vocabulary // 16)]
    settings = {"until": ends, "max_gen_toks": 8 if small else 64, "do_sample": False}
    answered = [
        _instance("generate_until", (text(draw.randint(20, 120)), dict(settings)), number)
        for number in range(6 if small else 200)
    ]
    return scored, answered


def _instance(kind: Any, arguments: tuple[Any, ...], number: int) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=number)


@torch.inference_mode()
def plain_scores(
    model: Any, tokenizer: Any, asked: Sequence[Instance], count: int = ROWS
) -> list[float]:
    """Log-likelihoods by padded batches of whole rows, the longest first; halved if need be."""
    try:
        return _plain_scores(model, tokenizer, asked, count)
    except torch.OutOfMemoryError:
        if count == 1:
            raise
    return plain_scores(model, tokenizer, asked, count // 2)


def _plain_scores(model: Any, tokenizer: Any, asked: Sequence[Instance], count: int) -> list[float]:
    device, found = model.device, [0.0] * len(asked)
    split = [[tokenizer.encode(t, add_special_tokens=False) for t in one.args] for one in asked]
    order = sorted(range(len(asked)), key=lambda place: -len(split[place][0]))
    for first in range(0, len(order), count):
        places = order[first : first + count]
        rows = [(split[place][0] + split[place][1])[:-1] for place in places]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [1] * (longest - len(row)) for row in rows], device=device)
        values = model(input_ids=tokens).logits.float().log_softmax(-1)
        for row, place in enumerate(places):
            answer, end = split[place][1], len(rows[row])
            at = torch.arange(end - len(answer), end, device=device)
            targets = torch.tensor(answer, device=device)
            found[place] = values[row, at, targets].sum().item()
    return found


@torch.inference_mode()
def plain_answers(model: Any, tokenizer: Any, asked: Sequence[Instance]) -> list[list[int]]:
    """Greedy answers by `generate`, cut at the first word that ends one."""
    ends = set(tokenizer.convert_tokens_to_ids(asked[0].args[1]["until"])) | {1}
    most, found = asked[0].args[1]["max_gen_toks"], []
    for first in range(0, len(asked), ROWS):
        texts = [one.args[0] for one in asked[first : first + ROWS]]
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        said = model.generate(
            input_ids=batch.input_ids.to(model.device),
            attention_mask=batch.attention_mask.to(model.device),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=1,
        )
        for row in said[:, batch.input_ids.shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in ends), len(row))
            found.append(row[:end])
    return found


def seconds(action: Callable[[], Any], device: str, repeats: int) -> tuple[float, Any]:
    """The median time of an action, after one that does not count; and what it gave."""
    times, found = [], None
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        found = action()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), found


def measured(device: str, small: bool, repeats: int) -> dict[str, Any]:
    """Both sides' seconds and answers, as one record."""
    model, tokenizer = build(small, device)
    lm = make_lm(model, tokenizer, batch_size=ROWS)
    local = Local(lm)
    scored, answered = requests(model.config.vocab_size, small)
    spent: dict[str, tuple[float, Any]] = {
        "loglikelihood": seconds(lambda: local.answer(scored), device, repeats),
        "plain loglikelihood": seconds(
            lambda: plain_scores(model, tokenizer, scored), device, repeats
        ),
        "generation": seconds(lambda: local.answer(answered), device, repeats),
        "plain generation": seconds(
            lambda: plain_answers(model, tokenizer, answered), device, repeats
        ),
    }
    ours = [response.value[0] for response in spent["loglikelihood"][1]]
    theirs = spent["plain loglikelihood"][1]
    texts = [response.value.split() for response in spent["generation"][1]]
    words = [tokenizer.convert_ids_to_tokens(row) for row in spent["plain generation"][1]]
    return {
        "device": device_name(torch.device(device)),
        "seconds": {name: value for name, (value, _) in spent.items()},
        "ratios": {
            kind: spent[f"plain {kind}"][0] / spent[kind][0]
            for kind in ("loglikelihood", "generation")
        },
        "loglikelihoods differ by at most": max(
            abs(a - b) for a, b in zip(ours, theirs, strict=True)
        ),
        "answers that agree": sum(a == b for a, b in zip(texts, words, strict=True)),
        "answers": len(answered),
        "tokens generated a second": sum(len(row) + 1 for row in texts) / spent["generation"][0],
        "batch tokens": local.budget.tokens,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default=available() or "none", help="torch's name, or cpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "none":
        print("no GPU here: scoring on a GPU is not timed")
        return 0
    found = measured(arguments.device, arguments.small, arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(f"{found['device']}: plain transformers' seconds by evomerge's")
    for kind, ratio in found["ratios"].items():
        own, plain = found["seconds"][kind], found["seconds"][f"plain {kind}"]
        print(f"{kind:14} {own:7.2f} s against {plain:7.2f} s  {ratio:5.2f}x")
    print(f"{found['answers that agree']} of {found['answers']} answers agree")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
