"""The files of mergekit's documentation, of tiny random models standing in for the named ones.

Each file in `mergekit_files/` has the methods, keys and numbers of one of mergekit's examples, or
of what its guide to the methods says of one. evomerge computes in float32, so that the files are
merged with float32 in place of their own dtype; with their own, results differ by its rounding.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import yaml
from mergekit_oracle import merged_by_mergekit, tensors_in
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from evomerge.common.errors import InputError
from evomerge.export.merge import merge_file
from evomerge.mergekit.methods import FORMS, pairings
from evomerge.models.tokens.chat_templates import NAMED

pytestmark = pytest.mark.slow

FILES = {path.stem: path for path in sorted(Path(__file__).with_name("mergekit_files").iterdir())}
DEEP = {"gradient-slerp", "mega", "orcamini-platy-44layer"}
"""Files about all forty layers of their models; six do for the others."""
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def documents(name):
    return list(yaml.safe_load_all(FILES[name].read_text()))


def named(value):
    """The models that a document names."""
    if isinstance(value, dict):
        own = [value[key] for key in ("model", "base_model") if key in value]
        return {*own, *(name for entry in value.values() for name in named(entry))}
    return {name for entry in value for name in named(entry)} if isinstance(value, list) else set()


def stages(name):
    return {document["name"] for document in documents(name) if "name" in document}


def methods(name):
    return {document["merge_method"] for document in documents(name)}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Depth → every model that a file of it names → its folder: fp32, random, far from another."""
    return {
        depth: save_zoo(tmp_path_factory.mktemp(f"zoo{depth}"), depth, files)
        for depth, files in ((40, DEEP), (6, set(FILES) - DEEP))
    }


def save_zoo(folder, depth, files):
    specs = {spec for name in files for spec in named(documents(name)) - stages(name)} - {"gpt2"}
    names = {spec.replace("/", "_"): spec for spec in sorted(specs)}
    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "num_hidden_layers": depth}
    paths = tiny.save_family(folder, tuple(names), dtype=torch.float32, spread=3.0, **small)
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=12, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    tiny.save_tokenizer(folder / "gpt2")
    return {"gpt2": folder / "gpt2"} | {spec: paths[name] for name, spec in names.items()}


def text_of(name, zoo, **changes):
    """The file with folders for models, and keys changed in every document."""
    data = [{**document, **changes} for document in documents(name)]
    text = yaml.safe_dump_all(data, sort_keys=False)
    for spec, path in zoo[40 if name in DEEP else 6].items():
        text = text.replace(f": {spec}\n", f": {path}\n")
    return text


def merged(text, out):
    """By both tools: name → tensor."""
    file = out / "file.yaml"
    file.write_text(text)
    folder, _ = merge_file(file, out / "ours", {}, None)
    return tensors_in(folder), merged_by_mergekit(text, out / "theirs")


def test_the_files_are_about_every_method_of_mergekits():
    assert {method for name in FILES for method in methods(name)} == set(FORMS)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "mega" else n for n in FILES]
)
def test_a_documented_file_gives_mergekits_tensors_or_is_refused_by_name(zoo, tmp_path, name):
    text = text_of(name, zoo, dtype="float32")
    if unknown := methods(name) - set(pairings()):
        with pytest.raises(InputError, match=f"'{unknown.pop()}' of mergekit is not read"):
            merged(text, tmp_path)
        return
    ours, theirs = merged(text, tmp_path)
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert ours[tensor].shape == value.shape
        if any(FORMS[method].random for method in methods(name)):
            continue
        torch.testing.assert_close(ours[tensor], value, **TOLERANCE, msg=lambda m, t=tensor: t + m)


RANDOM = [name for name in FILES if any(FORMS[method].random for method in methods(name))]


@pytest.mark.parametrize("name", RANDOM)
def test_random_masks_leave_as_much_of_the_base_as_mergekits(zoo, tmp_path, name):
    if methods(name) - set(pairings()):
        pytest.skip("the method is not registered")
    text = text_of(name, zoo, dtype="float32")
    torch.manual_seed(0)  # mergekit's masks are of the global generator
    ours, theirs = merged(text, tmp_path)
    base = tensors_in(zoo[6][documents(name)[0]["base_model"]])
    shares = [
        sum(int((found[n] == base[n]).sum()) for n in base) / sum(t.numel() for t in base.values())
        for found in (ours, theirs)
    ]
    assert 0.05 < shares[0] < 0.5
    assert shares[0] == pytest.approx(shares[1], abs=0.015)


AS_WRITTEN = ["linear", "gradient-slerp", "orcamini-platy-44layer", "passthrough-scaled"]


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_in_the_files_own_dtype_results_differ_by_its_rounding(zoo, tmp_path, name):
    ours, theirs = merged(text_of(name, zoo), tmp_path)
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert ours[tensor].dtype == value.dtype == torch.float16
        torch.testing.assert_close(
            ours[tensor], value, rtol=2**-10, atol=2**-10 * float(value.abs().max()), msg=tensor
        )


def test_half_precision_trims_differ_in_few_entries(zoo, tmp_path):
    """mergekit trims what it has rounded to float16, where magnitudes tie; evomerge before that."""
    ours, theirs = merged(text_of("bio-merge", zoo), tmp_path)
    pairs = [(ours[name].float(), theirs[name].float()) for name in theirs]
    differing = sum(int((~torch.isclose(a, b, rtol=2**-8, atol=1e-4)).sum()) for a, b in pairs)
    assert differing / sum(a.numel() for a, _ in pairs) < 0.01


def test_a_model_that_is_not_the_base_gives_its_tokenizer_and_templates_are_followed(tmp_path):
    paths = tiny.save_family(tmp_path / "m")
    (paths["math"] / "chat_template.jinja").write_text("math {{ messages }}")
    (paths["lang"] / "chat_template.jinja").write_text("lang {{ messages }}")
    data = {
        "merge_method": "task_arithmetic",
        "base_model": str(paths["base"]),
        "models": [
            {"model": str(paths[name]), "parameters": {"weight": 0.5}} for name in ("math", "lang")
        ],
        "tokenizer_source": str(paths["lang"]),
    }
    file = tmp_path / "file.yaml"

    def template(**keys):
        file.write_text(yaml.safe_dump({**data, **keys}))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        merge_file(file, out, {}, None)
        again, _ = merge_file(out / "recipe.json", out.with_name(f"{out.name}again"), {}, None)
        texts = [folder / "chat_template.jinja" for folder in (out, again)]
        assert texts[0].read_text() == texts[1].read_text()
        return texts[0].read_text()

    assert template() == "lang {{ messages }}"
    assert template(chat_template="auto") == "math {{ messages }}"
    assert template(chat_template="own {{ messages }}") == "own {{ messages }}"
    (tmp_path / "mine.jinja").write_text("mine {{ messages }}")
    assert template(chat_template="mine.jinja") == "mine {{ messages }}"
    assert template(chat_template="chatml") == NAMED["chatml"]


def test_a_token_for_which_no_model_has_a_row_gets_zeros_and_a_note(tmp_path):
    paths = tiny.save_family(tmp_path / "m", experts=("math",))
    tokenizer = AutoTokenizer.from_pretrained(paths["math"])
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(paths["math"])
    data = {
        "merge_method": "task_arithmetic",
        "base_model": str(paths["base"]),
        "models": [{"model": str(paths["math"]), "parameters": {"weight": 0.5}}],
        "tokenizer_source": str(paths["math"]),
    }
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(data))
    out, notes = merge_file(file, tmp_path / "out", {}, None)
    embedding = tensors_in(out)["model.embed_tokens.weight"]
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("new") == 64
    assert embedding.shape[0] == 65
    assert not embedding[64].any()
    assert embedding[63].any()
    assert any("no model has 1 of them" in note for note in notes)


def test_stages_stay_beside_the_result_and_are_made_once(zoo, tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text(text_of("multimerge", zoo))
    _, notes = merge_file(file, tmp_path / "out", {}, None)
    assert any("out-stages" in note for note in notes)
    weights = sorted((tmp_path / "out-stages").glob("*/model.safetensors"))
    assert [path.parent.name for path in weights] == ["1-first-merge", "2-second-merge"]
    before = [path.stat().st_mtime_ns for path in weights]
    first = tensors_in(tmp_path / "out")
    save_file(first, tmp_path / "kept.safetensors")
    (tmp_path / "out").rename(tmp_path / "moved")
    merge_file(file, tmp_path / "out", {}, None)
    assert [path.stat().st_mtime_ns for path in weights] == before
    again = tensors_in(tmp_path / "out")
    assert all(torch.equal(first[name], again[name]) for name in first)
