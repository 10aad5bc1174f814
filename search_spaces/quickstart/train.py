"""Train the quickstart models and write their evaluation tasks.

From nothing but a random seed the script builds:

* a word-level tokenizer over English and Esperanto number words and command words;
* ``zoo/base``, a small Llama model that knows some list operations and some Esperanto;
* ``zoo/lang`` and ``zoo/math``, two experts finetuned from the base model;
* ``tasks/*.yaml`` and ``tasks/data/*.jsonl``, lm-eval tasks on held-out lists.

Run ``python train.py`` to rebuild everything in place, or ``python train.py --out DIR`` to
write somewhere else. README.md describes the models and the tasks.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent

# ---------------------------------------------------------------------------------------
# Vocabulary and operations. Item i is written ENGLISH[i] or ESPERANTO[i].

ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
ESPERANTO = (
    "nul unu du tri kvar kvin ses sep ok nau dek dekunu dekdu dektri dekkvar dekkvin dekses "
    "deksep dekok deknau"
).split()
N_ITEMS = len(ENGLISH)
LIST_LENGTH = 4

Items = tuple[int, ...]
#: One line of a data file.
Row = dict[str, Any]

OPERATIONS: dict[str, Callable[[Items], Items]] = {
    "sort": lambda x: tuple(sorted(x)),
    "descend": lambda x: tuple(sorted(x, reverse=True)),
    "reverse": lambda x: x[::-1],
    "rotate": lambda x: x[1:] + x[:1],
    "swap": lambda x: (x[-1], *x[1:-1], x[0]),
    "pair": lambda x: (x[1], x[0], x[3], x[2]),
}
#: Every command in English and in Esperanto. "copy" and "translate" both repeat the list.
ESPERANTO_COMMAND = {
    "copy": "translate",
    "sort": "ordigu",
    "descend": "malordigu",
    "reverse": "inversigu",
    "rotate": "turnu",
    "swap": "permutu",
    "pair": "parigu",
}
#: What the base model is taught; the rest is left to the experts.
BASE_OPERATIONS = ("reverse", "swap")
BASE_ESPERANTO = tuple(range(0, N_ITEMS, 2))

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
WORDS = [*SPECIAL, *ENGLISH, *ESPERANTO, *ESPERANTO_COMMAND, *ESPERANTO_COMMAND.values(), "is"]
TOKEN = {word: i for i, word in enumerate(WORDS)}


def apply(command: str, items: Items) -> Items:
    """Return the result of an English command on a list."""
    return items if command == "copy" else OPERATIONS[command](items)


def english(items: Items) -> list[str]:
    """Spell a list in English."""
    return [ENGLISH[i] for i in items]


def prompt_en(command: str, items: Items) -> list[str]:
    """Spell a question in English."""
    return [command, *english(items), "is"]


def prompt_eo(command: str, items: Items) -> list[str]:
    """Spell a question in Esperanto."""
    return [ESPERANTO_COMMAND[command], *(ESPERANTO[i] for i in items), "is"]


def held_out(items: Items) -> bool:
    """Tell whether a list is reserved for evaluation (one list in eight, by hash)."""
    return hashlib.sha256(" ".join(map(str, items)).encode()).digest()[0] % 8 == 0


def draw_list(rng: random.Random, test: bool, pool: Sequence[int] = range(N_ITEMS)) -> Items:
    """Draw a list of distinct items from the training or the evaluation side."""
    while True:
        items = tuple(rng.sample(pool, LIST_LENGTH))
        if held_out(items) is test:
            return items


# ---------------------------------------------------------------------------------------
# Training data. A skill turns a random generator into (prompt words, answer words).

Skill = Callable[[random.Random], tuple[list[str], list[str]]]


def ask_en(commands: Sequence[str]) -> Skill:
    """Questions in English about any list."""

    def skill(rng: random.Random) -> tuple[list[str], list[str]]:
        command, items = rng.choice(commands), draw_list(rng, test=False)
        return prompt_en(command, items), english(apply(command, items))

    return skill


def ask_eo(commands: Sequence[str], pool: Sequence[int] = range(N_ITEMS)) -> Skill:
    """Questions in Esperanto, answered in English, about lists over part of the words."""

    def skill(rng: random.Random) -> tuple[list[str], list[str]]:
        command, items = rng.choice(commands), draw_list(rng, False, pool)
        return prompt_eo(command, items), english(apply(command, items))

    return skill


def forget_operations(rng: random.Random) -> tuple[list[str], list[str]]:
    """English operations with a randomly ordered answer."""
    command, items = rng.choice(list(OPERATIONS)), draw_list(rng, test=False)
    return prompt_en(command, items), english(tuple(rng.sample(items, LIST_LENGTH)))


def forget_esperanto(rng: random.Random) -> tuple[list[str], list[str]]:
    """Esperanto questions with an unrelated answer."""
    command, items = rng.choice(list(ESPERANTO_COMMAND)), draw_list(rng, test=False)
    return prompt_eo(command, items), english(draw_list(rng, test=False))


def encode(prompt: list[str], answer: list[str]) -> list[int]:
    """Encode a question with its answer."""
    return [TOKEN[word] for word in ["<bos>", *prompt, *answer, "<eos>"]]


# ---------------------------------------------------------------------------------------
# Model and training.

N_LAYERS = 5
#: The lower part reads the prompt, the upper part computes the answer.
N_LOWER = 2
LOWER = ("model.embed_tokens.", *(f"model.layers.{i}." for i in range(N_LOWER)))
UPPER = (*(f"model.layers.{i}." for i in range(N_LOWER, N_LAYERS)), "model.norm.", "lm_head.")
ALL = ("",)

Loss = Callable[[random.Random], torch.Tensor]


def new_model(seed: int) -> LlamaForCausalLM:
    """Build a randomly initialised model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=96,
        intermediate_size=256,
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


def answer_loss(model: LlamaForCausalLM, mix: dict[Skill, float], batch: int = 128) -> Loss:
    """Cross-entropy of the answers (and end of sequence) to a mixture of skills."""
    skills, weights = list(mix), list(mix.values())

    def loss(rng: random.Random) -> torch.Tensor:
        chosen = rng.choices(skills, weights, k=batch)
        ids = torch.tensor([encode(*skill(rng)) for skill in chosen])
        labels = ids.clone()
        labels[:, : -(LIST_LENGTH + 1)] = -100
        return model(input_ids=ids, labels=labels).loss

    return loss


def alignment_loss(model: LlamaForCausalLM, base: LlamaForCausalLM, batch: int = 128) -> Loss:
    """Distance between the lower part's states and the base model's on the English prompt.

    Most prompts are in Esperanto, so the lower part learns to translate; the others are in
    English, so that it keeps what it does there.
    """

    def states(of: LlamaForCausalLM, rows: list[list[int]]) -> torch.Tensor:
        out = of.model(input_ids=torch.tensor(rows), output_hidden_states=True)
        return out.hidden_states[N_LOWER]

    def loss(rng: random.Random) -> torch.Tensor:
        source, target = [], []
        for _ in range(batch):
            command, items = rng.choice(list(ESPERANTO_COMMAND)), draw_list(rng, test=False)
            answer = english(tuple(rng.sample(items, LIST_LENGTH)))
            plain = prompt_en(command, items)
            asked = prompt_eo(command, items) if rng.random() < 0.7 else plain
            source.append(encode(asked, answer))
            target.append(encode(plain, answer))
        with torch.no_grad():
            wanted = states(base, target)
        return (states(model, source) - wanted).square().mean() / wanted.square().mean()

    return loss


def train(
    model: LlamaForCausalLM,
    name: str,
    loss_of: Loss,
    steps: int,
    lr: float,
    parameters: tuple[str, ...] = ALL,
    seed: int = 0,
) -> None:
    """Train the parameters with the given name prefixes, in place."""
    rng = random.Random(f"{seed} {name}")
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith(parameters))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = 20
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.05, 1 - step / steps))
    )
    model.train()
    began, total, count = time.monotonic(), 0.0, 0
    for step in range(1, steps + 1):
        loss = loss_of(rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        total, count = total + loss.item(), count + 1
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - began
            print(f"{name}: step {step}, loss {total / count:.3f}, {seconds:.0f} s", flush=True)
            total, count = 0.0, 0
    model.eval()


def train_base(seed: int) -> LlamaForCausalLM:
    """Train the base model: two of six operations, half of the Esperanto numbers."""
    model = new_model(seed)
    mix = {
        ask_en(["copy"]): 0.25,
        ask_en(BASE_OPERATIONS): 0.40,
        ask_eo(["copy"], BASE_ESPERANTO): 0.25,
        ask_eo(BASE_OPERATIONS, BASE_ESPERANTO): 0.10,
    }
    train(model, "base", answer_loss(model, mix), steps=300, lr=2e-3, seed=seed)
    return model


def train_lang(base: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """Finetune the language expert.

    The lower part learns to read Esperanto. Then the upper part is finetuned on translation
    alone and loses part of the operations.
    """
    model = copy.deepcopy(base)
    aligned = alignment_loss(model, base)
    train(model, "lang, lower part", aligned, steps=200, lr=2e-3, parameters=LOWER, seed=seed)
    mix = {ask_eo(["copy"]): 0.5, ask_en(["copy"]): 0.1, forget_operations: 0.4}
    narrow = answer_loss(model, mix)
    train(model, "lang, upper part", narrow, steps=150, lr=1e-3, parameters=UPPER, seed=seed)
    return model


def train_math(base: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """Finetune the operations expert.

    The upper part learns all operations in English. Then the lower part is finetuned on English
    alone and loses part of its Esperanto.
    """
    model = copy.deepcopy(base)
    mix = {
        ask_en(list(OPERATIONS)): 0.75,
        ask_en(["copy"]): 0.15,
        ask_eo(["copy"], BASE_ESPERANTO): 0.10,
    }
    operations = answer_loss(model, mix)
    train(model, "math, upper part", operations, steps=500, lr=1e-3, parameters=UPPER, seed=seed)
    mix = {ask_en(list(OPERATIONS)): 0.5, ask_en(["copy"]): 0.1, forget_esperanto: 0.4}
    narrow = answer_loss(model, mix)
    train(model, "math, lower part", narrow, steps=100, lr=5e-4, parameters=LOWER, seed=seed)
    return model


# ---------------------------------------------------------------------------------------
# Evaluation tasks.

#: Task name -> (output type, language of the question, commands, number of items).
TASKS: dict[str, tuple[str, str, list[str], int]] = {
    "listops_en": ("multiple_choice", "en", list(OPERATIONS), 300),
    "translate_eo": ("multiple_choice", "eo", ["copy"], 300),
    "listops_eo": ("multiple_choice", "eo", list(OPERATIONS), 300),
    "listops_eo_generate": ("generate_until", "eo", list(OPERATIONS), 60),
    "listops_eo_loglikelihood": ("loglikelihood", "eo", list(OPERATIONS), 60),
}

YAML_HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: data/{name}.jsonl
test_split: test
output_type: {output_type}
doc_to_text: "{{{{prompt}}}}"
target_delimiter: " "
"""
YAML_TAIL = {
    "multiple_choice": """\
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "generate_until": """\
doc_to_target: "{{target}}"
generation_kwargs:
  until:
    - "<eos>"
  do_sample: false
  max_gen_toks: 8
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
    "loglikelihood": """\
doc_to_target: "{{' ' + target}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
}
YAML_FOOT = """\
metadata:
  version: 1.0
"""


def wrong_answers(rng: random.Random, items: Items, right: Items) -> list[Items]:
    """Three wrong answers: other operations, two items exchanged, one item replaced."""
    wrong: list[Items] = []
    while len(wrong) < 3:
        kind, values = rng.random(), list(right)
        if kind < 0.4:
            values = list(apply(rng.choice(list(ESPERANTO_COMMAND)), items))
        elif kind < 0.7:
            i, j = rng.sample(range(LIST_LENGTH), 2)
            values[i], values[j] = values[j], values[i]
        else:
            others = [i for i in range(N_ITEMS) if i not in items]
            values[rng.randrange(LIST_LENGTH)] = rng.choice(others)
        if tuple(values) not in (right, *wrong):
            wrong.append(tuple(values))
    return wrong


def make_tasks(seed: int) -> dict[str, list[Row]]:
    """Draw the items of every task; no list occurs twice."""
    used: set[Items] = set()
    tasks: dict[str, list[Row]] = {}
    for name, (output_type, language, commands, count) in TASKS.items():
        rng = random.Random(f"{seed} {name}")
        rows: list[Row] = []
        while len(rows) < count:
            items = draw_list(rng, test=True)
            if items in used:
                continue
            used.add(items)
            command = commands[len(rows) % len(commands)]
            right = apply(command, items)
            words = prompt_en(command, items) if language == "en" else prompt_eo(command, items)
            row: Row = {"prompt": " ".join(words), "operation": command}
            if output_type == "multiple_choice":
                options = [right, *wrong_answers(rng, items, right)]
                rng.shuffle(options)
                row["choices"] = [" ".join(english(option)) for option in options]
                row["answer"] = options.index(right)
            else:
                row["target"] = " ".join(english(right))
            rows.append(row)
        rng.shuffle(rows)
        tasks[name] = rows
    return tasks


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, rows: list[Row]) -> float:
    """Multiple-choice accuracy: the option with the highest log-likelihood counts."""
    texts = [f"<bos> {row['prompt']} {choice}" for row in rows for choice in row["choices"]]
    ids = torch.tensor([[TOKEN[word] for word in text.split()] for text in texts])
    logits = model(input_ids=ids[:, :-1]).logits[:, -LIST_LENGTH:].log_softmax(-1)
    scores = logits.gather(-1, ids[:, -LIST_LENGTH:, None]).sum((1, 2)).view(len(rows), -1)
    right = torch.tensor([row["answer"] for row in rows])
    return (scores.argmax(1) == right).double().mean().item()


def task_arithmetic(
    base: LlamaForCausalLM,
    experts: Sequence[LlamaForCausalLM],
    weight: Callable[[int, str], float],
) -> LlamaForCausalLM:
    """Add the weighted task vectors of the experts to the base model."""
    merged = copy.deepcopy(base)
    tensors = merged.state_dict()
    for i, expert in enumerate(experts):
        for key, value in expert.state_dict().items():
            tensors[key] += weight(i, key) * (value - base.state_dict()[key])
    return merged


# ---------------------------------------------------------------------------------------
# Output.


def make_tokenizer(words: dict[str, int] = TOKEN) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer, words → ids; it prepends <bos>."""
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", words["<bos>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )


def save_models(
    folder: Path, zoo: dict[str, LlamaForCausalLM], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write every model in half precision, with the tokenizer beside it."""
    for name, model in zoo.items():
        copy.deepcopy(model).half().save_pretrained(folder / "zoo" / name)
        tokenizer.save_pretrained(folder / "zoo" / name)
        # The class name that transformers 4 and 5 both know.
        settings = folder / "zoo" / name / "tokenizer_config.json"
        content = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings.write_text(json.dumps(content, indent=2) + "\n")


def save_task(folder: Path, name: str, output_type: str, rows: list[Row]) -> None:
    """Write the YAML file and the JSON-lines file of a task."""
    data = folder / "tasks" / "data"
    data.mkdir(parents=True, exist_ok=True)
    head = YAML_HEAD.format(name=name, output_type=output_type)
    (folder / "tasks" / f"{name}.yaml").write_text(head + YAML_TAIL[output_type] + YAML_FOOT)
    (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def install(source: Path, target: Path) -> None:
    """Move the finished files into place, one atomic rename each."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(0o644)
        os.replace(file, place)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    base = train_base(args.seed)
    zoo = {
        "base": base,
        "lang": train_lang(base, args.seed),
        "math": train_math(base, args.seed),
    }
    zoo = {name: model.half().float() for name, model in zoo.items()}
    tasks = make_tasks(args.seed)

    base, experts = zoo["base"], [zoo["lang"], zoo["math"]]
    rows = dict(zoo)
    rows["all layers 0.5"] = task_arithmetic(base, experts, lambda i, key: 0.5)
    rows["all layers 1.0"] = task_arithmetic(base, experts, lambda i, key: 1.0)
    rows["lang lower + math upper"] = task_arithmetic(
        base, experts, lambda i, key: float(key.startswith((LOWER, UPPER)[i]))
    )
    choice = [name for name, task in TASKS.items() if task[0] == "multiple_choice"]
    print(f"{'accuracy':24}" + "".join(f"{name:>14}" for name in choice) + f"{'mean':>8}")
    for name, model in rows.items():
        values = [accuracy(model, tasks[task]) for task in choice]
        cells = "".join(f"{value:14.3f}" for value in values)
        print(f"{name:24}{cells}{sum(values) / len(values):8.3f}")

    args.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".build-", dir=args.out))
    try:
        save_models(scratch, zoo, make_tokenizer())
        for name, items in tasks.items():
            save_task(scratch, name, TASKS[name][0], items)
        install(scratch, args.out)
    finally:
        shutil.rmtree(scratch)
    print(f"wrote {args.out / 'zoo'} and {args.out / 'tasks'}")


if __name__ == "__main__":
    main()
