"""Files from strangers: whatever stands in them, a message says what is wrong, or all is well.

`EVOMERGE_FUZZ=20000` sets the number of examples, drawn anew in every run.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from contextlib import contextmanager

import pytest
import tiny
import yaml
from hostile import json_text, mutated, refused_or_fine, scrambled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.campaign import setup
from evomerge.config import ModelsConfig, load_campaign
from evomerge.export import merge
from evomerge.export.parents import licence_of
from evomerge.materialize.disk import recipe_models
from evomerge.models.checks.checked_models import check_models
from evomerge.models.open_models import open_models
from evomerge.models.tokens.tokenizer import load_tokenizer, tokenizer_digest, tokens_by_id
from evomerge.recipe import Merge, Recipe, Slot

LONG = int(os.environ.get("EVOMERGE_FUZZ", "0"))


def fuzzed(examples):
    """Few examples, the same in every run; or as many as the environment asks for."""
    return settings(
        max_examples=LONG or examples,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The tiny campaign's folder, with an adapter; every test puts back what it changes."""
    folder = tmp_path_factory.mktemp("hostile")
    tiny.save_campaign(folder)
    tiny.save_adapter(folder / "models/base", folder / "models/adapter", r=2)
    return folder


@pytest.fixture(scope="module")
def family(place):
    """The campaign's models, opened."""
    return check_models(_models(place))


@pytest.fixture
def opened_once(family, place, monkeypatch):
    """Models that the files do not touch are opened once for all examples."""
    wanted = _models(place)

    def known(models, **flags):
        same = (models.base, models.experts) == (wanted.base, wanted.experts)
        return family if same and not models.align else check_models(models, **flags)

    monkeypatch.setattr(setup, "check_models", known)
    monkeypatch.setattr(recipe_models, "check_models", known)


def _models(place, **experts):
    experts = experts or {name: str(place / "models" / name) for name in ("math", "lang")}
    return ModelsConfig(base=str(place / "models/base"), experts=experts)


def _write(path, content):
    """Text as it is, lone surrogates included."""
    known = isinstance(content, bytes)
    path.write_bytes(content if known else content.encode("utf-8", "surrogatepass"))


def _files(data, extra=(), text=json_text):
    """A file's content: the data mutated, or its text."""
    changed = mutated(data, extra).map(text)
    return changed | changed | scrambled(text(data))


def _yaml_text(data):
    return yaml.safe_dump(data, allow_unicode=False)


@contextmanager
def _instead(path, content):
    """Other content in a file, for a while."""
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)  # what was mapped of it stays as it was
    _write(path, content)
    try:
        yield
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


def _read(models):
    for source in open_models(models).values():
        assert source.digest
        load_tokenizer(source.folder)


CAMPAIGN = tiny.campaign_data(
    space={
        "weights": {
            "method": ["ties", "task_arithmetic"],
            "granularity": "layer",
            "genes": {"weight": [0, 1.5], "density": [0.2, 1], "lambda": 1.0},
        },
    },
    initial=["uniform"],
    workers={"kind": "local", "count": 1},
    study={"storage": "sqlite", "name": "x"},
    dtype={"weights": "checkpoint", "compute": "auto"},
    notify=[{"webhook": "https://localhost/x", "when": ["finish"]}],
    seed=0,
)


def _search(place):
    setup.prepare(load_campaign(place / "campaign.yaml"))


@fuzzed(30)
@given(content=_files(CAMPAIGN, text=_yaml_text))
def test_a_campaign(content, place, opened_once):
    with _instead(place / "campaign.yaml", content), refused_or_fine():
        _search(place)


@pytest.fixture(scope="module")
def exported(place, family):
    """A recipe, its models and its weights, as an export leaves them."""
    values = {"math": {"weight": 0.7}, "lang": {"weight": 0.4}}
    recipe = Recipe(
        sources={name: source.digest for name, source in family.sources.items()},
        path=(Slot(source="base", layer=0), Slot(source="math", layer=1)),
        merges=(
            Merge(slot=0, group="layer", method="ties", experts=values, parameters={"lambda": 0.9}),
            Merge(slot=None, group="head", method="linear", experts={"math": {"weight": 0.5}}),
        ),
    )
    (place / "recipe.json").write_text(json_text(recipe.to_json()))
    models = {name: str(place / "models" / name) for name in ("base", "math", "lang")}
    folder, _ = merge.merge_file(place / "recipe.json", place / "exported", models, None)
    return folder


def _merge(place, file):
    for folder in ("out", "out-stages"):
        shutil.rmtree(place / folder, ignore_errors=True)
    merge.merge_file(file, place / "out", {}, None)


@fuzzed(30)
@given(data=st.data())
def test_a_recipe(data, exported, place, opened_once):
    path = exported / "recipe.json"
    content = data.draw(_files(json.loads(path.read_bytes()), ("ties", "attention", 1.0)))
    with _instead(path, content), refused_or_fine():
        _merge(place, path)


@fuzzed(30)
@given(data=st.data())
def test_what_stands_beside_a_recipe(data, exported, place, opened_once):
    path = exported / "evomerge.json"
    known = json.loads(path.read_bytes())
    for name in [*known["made"]["tensors"]][2:]:
        del known["made"]["tensors"][name]
    known["made"]["digest"] = "another"
    lineage = {"recipe": json.loads((exported / "recipe.json").read_bytes()), "sources": known}
    known["recipes"] = {"math": json.loads(json_text(lineage))}
    content = data.draw(_files(known, ("bfloat16", "AAAA", "math", True, str(place / "gone"))))
    with _instead(path, content), refused_or_fine():
        _merge(place, exported / "recipe.json")


MERGEKIT = {
    "merge_method": "ties",
    "base_model": "models/base",
    "slices": [
        {
            "sources": [
                {"model": "models/base", "layer_range": [0, 2]},
                {
                    "model": "models/math",
                    "layer_range": [0, 2],
                    "parameters": {
                        "weight": [{"filter": "mlp", "value": [0.5, 1]}, {"value": 1}],
                        "density": 0.5,
                    },
                },
            ],
            "parameters": {"normalize": True},
        }
    ],
    "parameters": {"lambda": 0.9},
    "dtype": "bfloat16",
    "tokenizer_source": "base",
    "chat_template": "auto",
    "name": "../x",
}


@fuzzed(40)
@given(content=_files(MERGEKIT, text=_yaml_text))
def test_a_mergekit_file(content, place, opened_once):
    with _instead(place / "mergekit.yaml", content), refused_or_fine():
        _merge(place, place / "mergekit.yaml")


OF_CONFIGS = (
    *("gpt2", "mixtral", "llava", "gemma3", "t5", "bert", "mamba", "qwen2_moe", "falcon_h1"),
    {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "org/model--own.Own"},
    *(["LlamaForCausalLM"], {"model_type": "llama"}, "kernels-community/flash-attn"),
    *({"rope_type": "yarn", "factor": 1e9}, {"type": "dynamic"}, {"quant_method": "bitsandbytes"}),
)
MORE_OF_A_CONFIG = {
    "num_labels": 3,
    "auto_map": OF_CONFIGS[9],
    "text_config": {"model_type": "llama"},
    "vision_config": {},
    "quantization_config": {"quant_method": "bitsandbytes"},
    "attn_implementation": "eager",
    "layer_types": ["full_attention", "full_attention"],
}


def test_the_files_are_good_before_they_are_touched(place, exported, sharded, opened_once):
    (place / "campaign.yaml").write_text(_yaml_text(CAMPAIGN))
    _search(place)
    _merge(place, exported / "recipe.json")
    (place / "mergekit.yaml").write_text(_yaml_text(MERGEKIT))
    _merge(place, place / "mergekit.yaml")
    _read(_models(place, tuned=str(place / "models/adapter"), sharded=str(sharded)))


@fuzzed(40)
@given(data=st.data())
def test_a_config(data, place):
    path = place / "models/math/config.json"
    more = data.draw(st.sets(st.sampled_from([*MORE_OF_A_CONFIG]), max_size=2))
    known = json.loads(path.read_bytes()) | {key: MORE_OF_A_CONFIG[key] for key in sorted(more)}
    content = data.draw(_files(known, OF_CONFIGS))
    with _instead(path, content), refused_or_fine():
        _read(_models(place, math=str(path.parent)))


OF_TOKENIZERS = (
    *("LlamaTokenizer", "GPT2Tokenizer", "BertTokenizer", "PreTrainedTokenizerFast", "T5Tokenizer"),
    {"AutoTokenizer": ["own.Own", None]},
    {"AutoTokenizer": "org/model--own.Own"},
    {"__type": "AddedToken", "content": "x"},
    *("BPE", "Unigram", "WordPiece", "Sequence", {"type": "Split", "pattern": {"Regex": "(a+)+$"}}),
)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@fuzzed(40)
@given(data=st.data())
def test_a_tokenizer(data, name, place):
    path = place / "models/lang" / name
    known = json.loads(path.read_bytes()) if path.exists() else {"bos_token": "<s>"}
    if name == "tokenizer.json":
        known["model"]["vocab"] = dict([*known["model"]["vocab"].items()][:8])
    content = data.draw(_files(known, OF_TOKENIZERS))
    with _instead(path, content), refused_or_fine():
        tokenizer_digest(path.parent)
        if tokenizer := load_tokenizer(path.parent):
            tokens_by_id(tokenizer)


OF_HEADERS = (
    *(
        "F64",
        "F32",
        "F16",
        "BF16",
        "I64",
        "I8",
        "U8",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
        "F4",
        "F6_E2M3",
    ),
    *("F8_E8M0", "C64", "U16", "U32", "U64", [-1, 3], [2**32, 2**32], [2**63], [0], [], [0, 2**62]),
    *(
        [0, 2**64 - 1],
        [8, 0],
        [0, 0],
        [-8, 0],
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    ),
)


def _with_length(header, claimed=None):
    length = len(header) if claimed is None else claimed
    return struct.pack("<Q", length) + header


@fuzzed(60)
@given(data=st.data())
def test_a_safetensors_file(data, place):
    path = place / "models/math/model.safetensors"
    content = path.read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    fewer = dict([*header.items()][: data.draw(st.sampled_from([2, 5, len(header)]))])
    hostile = data.draw(_files(fewer, OF_HEADERS)).encode("utf-8", "surrogatepass")
    lengths = [None, None, None, 0, 1, 2**20, 10**8, 2**40, 2**63, 2**64 - 1]
    hostile = _with_length(hostile, data.draw(st.sampled_from(lengths)))
    hostile += rest[: data.draw(st.sampled_from([0, 100, len(rest)]))]
    with _instead(path, hostile), refused_or_fine():
        _read(_models(place, math=str(path.parent)))


@pytest.fixture(scope="module")
def sharded(place):
    """An expert in two shards."""
    folder = place / "models/sharded"
    shutil.copytree(place / "models/lang", folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [*tensors]
    weight_map = {}
    for file, part in (("a.safetensors", names[:9]), ("b.safetensors", names[9:])):
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@fuzzed(40)
@given(data=st.data())
def test_an_index_of_shards(data, place, sharded):
    path = sharded / "model.safetensors.index.json"
    known = json.loads(path.read_bytes())
    files = ("../lang/model.safetensors", "config.json", ".", "a.safetensors", "b.safetensors")
    content = data.draw(_files(known, files))
    with _instead(path, content), refused_or_fine():
        _read(_models(place, sharded=str(sharded)))


OF_ADAPTERS = (
    *("LORA", "LOHA", "q_proj", ".*", "all-linear", ["q_proj"], {"q_proj": 10**9}, "gaussian"),
    *(
        {"q_proj": -1},
        {"(": 1},
        [0, 1],
        [10**9],
        "layers",
        {"parent_library": "os"},
        "megatron.core",
    ),
)


@fuzzed(40)
@given(data=st.data())
def test_an_adapter(data, place):
    path = place / "models/adapter/adapter_config.json"
    content = data.draw(_files(json.loads(path.read_bytes()), OF_ADAPTERS))
    with _instead(path, content), refused_or_fine():
        _read(_models(place, tuned=str(path.parent)))


@fuzzed(30)
@given(content=scrambled("---\nlicense: mit\nlicense_name: x\n---\nA model.\n"))
def test_a_parents_model_card(content, place):
    with _instead(place / "models/math/README.md", content), refused_or_fine():
        assert isinstance(licence_of(place / "models/math"), str)
