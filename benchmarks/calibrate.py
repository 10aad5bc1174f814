"""`evomerge calibrate` against forward passes of the same texts: time, and memory of its own.

Run `python benchmarks/calibrate.py`. A Llama of `--parameters` (30M) with random float32 weights
reads `--texts` (16) texts of `--tokens` (512) tokens. In turn, each in a process of its own on
`--threads` threads: the whole model reads the texts one by one, as scoring does; then the Gram
matrices and magnitudes are taken of them, then the Fisher information. Seconds, and those that
cores were at work, are without imports. Memory is the most that the process had of its own, without
mapped files, beyond what its imports took. Prints the ratios to the forward passes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WORDS = 4000
KINDS = {"forward": (), "gram, mean_abs": ("gram", "mean_abs"), "fisher": ("fisher",)}


def own_memory() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Meter:
    """Meters the most memory of its own that the process has within."""

    def __enter__(self) -> Meter:
        self._before = self.most = own_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._started, self._worked = time.perf_counter(), time.process_time()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, own_memory())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self.worked = time.process_time() - self._worked
        self._done.set()
        self._thread.join()
        self.most = max(self.most, own_memory()) - self._before


def save(folder: Path, parameters: float, texts: int, tokens: int) -> None:
    """Save the model, its tokenizer and the texts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden = 512 if parameters < 1e8 else 1024
    inner = 11 * hidden // 4
    layers = max(1, round((parameters - WORDS * hidden) / (4 * hidden**2 + 3 * hidden * inner)))
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=tokens,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    drawn = torch.randint(3, WORDS, (texts, tokens)).tolist()
    lines = [json.dumps({"text": " ".join(f"w{i}" for i in ids)}) + "\n" for ids in drawn]
    (folder / "texts.jsonl").write_text("".join(lines))
    layer = sum(p.nbytes for p in model.model.layers[0].parameters())
    grams = 4 * (3 * hidden**2 + inner**2)
    sizes = {"model": 4 * model.num_parameters(), "layer": layer, "its grams": grams}
    (folder / "sizes.json").write_text(json.dumps(sizes))


def measure(folder: Path, name: str, threads: int) -> None:
    """Measure one of `KINDS` in this process, and print seconds and bytes as JSON."""
    from evomerge.cli.calibrate import map_large_memory

    map_large_memory()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.fitness.calibration.calibrate import Calibration, calibrate
    from evomerge.fitness.calibration.texts import read_texts, sample, tokenized
    from evomerge.models.open_models import open_model

    torch.set_num_threads(threads)
    texts = sample(read_texts("texts", folder / "texts.jsonl"), 1 << 20)
    source = open_model(str(folder / "model"))
    if KINDS[name]:
        target = folder / f"{name}.safetensors"
        asked = Calibration("the model", texts, KINDS[name], 1 << 20, threads)
        assert source.digest  # read once; campaigns know it
        with Meter() as meter:
            calibrate(source, asked, target)
    else:
        reader = AutoTokenizer.from_pretrained(folder / "model")
        tokens = tokenized("the model", texts, reader, 1 << 20, WORDS)
        with Meter() as meter:
            model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
            for parameter in model.parameters():  # memory of its own, as a worker's model has
                parameter.data = parameter.data.clone()
            with torch.inference_mode():
                for text in tokens:
                    model(text[None], use_cache=False)
    print(json.dumps([meter.seconds, meter.worked, meter.most]))


def main() -> None:
    """Measure all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", default="30M", help="such as 250M")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.folder, given.measure, given.threads)
        return
    units = {"M": 1e6, "B": 1e9}
    parameters = float(given.parameters[:-1]) * units[given.parameters[-1]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, parameters, given.texts, given.tokens)
        found = {}
        for kind in KINDS:
            command = [sys.executable, __file__, "--folder", name, "--measure", kind]
            command += ["--threads", str(given.threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
        sizes = json.loads((folder / "sizes.json").read_text())
    print(", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes.items()))
    forward = found["forward"]
    for kind, measured in found.items():
        seconds, worked, most = measured
        ratios = (one / other for one, other in zip(measured, forward, strict=True))
        shown = ", ".join(
            f"{name} {ratio:.2f}"
            for name, ratio in zip(("time", "cores' time", "memory"), ratios, strict=True)
        )
        print(
            f"{kind:16} {seconds:6.1f} s, {worked:6.1f} s of cores, {most / 1e6:6.0f} MB; {shown}"
        )


if __name__ == "__main__":
    main()
