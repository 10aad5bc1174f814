import json
import os
import pickle
import shutil

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from evomerge.common.errors import InputError
from evomerge.models.checkpoint import find_folder, open_checkpoint
from evomerge.models.source import Source


def rewrite(folder, change):
    """Apply `change` to the tensors of a folder's single weight file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.clone() for k, v in tensors.items()}, path, {"format": "pt"})


@pytest.fixture
def sharded(model_of, tmp_path):
    """Folder of a tiny Llama in several shards."""
    model_of().save_pretrained(tmp_path / "sharded", max_shard_size="8kB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def shard_with(folder, name):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def edit_index(folder, **changes):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def test_shards_open_to_the_weights_and_digest_of_the_single_file(saved, sharded):
    single, split = open_checkpoint("a", str(saved("a"))), open_checkpoint("b", str(sharded))
    assert single.names() == split.names()
    assert all(torch.equal(single.read(n), split.read(n)) for n in single.names())
    assert single.digest == split.digest
    assert len(single.digest) == 32


def test_digest_depends_on_weights_dtype_and_config_but_not_on_place_or_metadata(
    saved, edit_config, tmp_path
):
    original = saved("original")
    digest = open_checkpoint("base", str(original)).digest
    moved = shutil.copytree(original, tmp_path / "moved")
    edit_config(moved, transformers_version="4.0.0", torch_dtype="float32", _name_or_path="x")
    save_file(load_file(moved / "model.safetensors"), moved / "model.safetensors", {"by": "me"})
    assert open_checkpoint("math", str(moved)).digest == digest

    edit_config(moved, rms_norm_eps=1e-3)
    assert open_checkpoint("base", str(moved)).digest != digest
    assert open_checkpoint("base", str(saved("half", dtype=torch.float16))).digest != digest
    rewrite(original, lambda tensors: tensors["model.norm.weight"][3].add_(1e-6))
    assert open_checkpoint("base", str(original)).digest != digest


def test_the_same_bytes_as_another_dtype_have_another_digest(saved):
    folder = saved("half", dtype=torch.float16)
    name = "model.norm.weight"
    before = open_checkpoint("base", str(folder)).tensor_digests[name]
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].view(torch.bfloat16)}))
    assert open_checkpoint("base", str(folder)).tensor_digests[name] != before


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_reading_gives_views_of_the_file_not_copies(saved):
    checkpoint: Source = open_checkpoint("base", str(saved("a")))
    name = "model.layers.1.mlp.up_proj.weight"
    assert checkpoint.read(name).data_ptr() == checkpoint.read(name).data_ptr()
    assert checkpoint.shape(name) == (24, 16)
    assert checkpoint.dtype(name) == torch.float32
    with open("/proc/self/maps") as maps:
        assert str(checkpoint.folder / "model.safetensors") in maps.read()


def test_a_checkpoint_is_pickled_as_its_spec_and_opened_again(saved):
    checkpoint = open_checkpoint("math", str(saved("a")))
    sent = pickle.dumps(checkpoint)
    again = pickle.loads(sent)
    assert len(sent) < 1000
    assert again.name == "math"
    assert again.digest == checkpoint.digest


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_names_without_the_base_model_prefix_are_understood(kind, model_of, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    prefix = f"{model.base_model_prefix}."

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    rewrite(tmp_path, strip)
    checkpoint = open_checkpoint("base", str(tmp_path))
    assert all(torch.equal(checkpoint.read(n), t) for n, t in model.state_dict().items())


def test_names_with_the_base_model_prefix_once_too_often_are_understood(saved):
    folder = saved("a")
    digest = open_checkpoint("base", str(folder)).digest

    def wrap(tensors):
        for name in list(tensors):
            tensors[f"model.{name}"] = tensors.pop(name)

    rewrite(folder, wrap)
    assert open_checkpoint("base", str(folder)).digest == digest


def test_a_tensor_stored_under_two_names_for_the_same_weight_is_refused(model_of, tmp_path):
    model_of("gpt2").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"wpe.weight": t["transformer.wpe.weight"] + 1}))
    with pytest.raises(InputError, match=r"wpe\.weight is stored twice"):
        open_checkpoint("base", str(tmp_path))


def test_buffers_of_old_checkpoints_are_skipped(model_of, tmp_path):
    model_of("gpt2").save_pretrained(tmp_path / "gpt2")
    mask = {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16) for i in range(3)}
    rewrite(tmp_path / "gpt2", lambda tensors: tensors.update(mask))
    model_of("llama").save_pretrained(tmp_path / "llama")
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(tmp_path / "llama", lambda tensors: tensors.update(rotary))
    for folder in ("gpt2", "llama"):
        checkpoint = open_checkpoint("base", str(tmp_path / folder))
        assert not any(".attn.bias" in n or "inv_freq" in n for n in checkpoint.names())


def test_a_stored_tied_head_is_skipped_when_equal_and_refused_when_not(model_of, tmp_path):
    model_of("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    digest = open_checkpoint("base", str(tmp_path)).digest
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]

    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    checkpoint = open_checkpoint("base", str(tmp_path))
    assert "lm_head.weight" not in checkpoint.names()
    assert checkpoint.digest == digest
    assert torch.equal(checkpoint.read("lm_head.weight"), embedding)

    rewrite(tmp_path, lambda tensors: tensors["lm_head.weight"][0].add_(1))
    with pytest.raises(InputError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        open_checkpoint("base", str(tmp_path))


def test_a_tied_weight_stored_under_its_other_name_is_found(model_of, tmp_path):
    model_of("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    digest = open_checkpoint("base", str(tmp_path)).digest
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert open_checkpoint("base", str(tmp_path)).digest == digest


def test_unexpected_missing_and_misshapen_tensors_are_named_with_their_file(saved):
    folder = saved("a")
    key = r"models\.experts\.math: .*model\.safetensors: "
    rewrite(folder, lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    with pytest.raises(InputError, match=rf"{key}unexpected tensor model\.extra\.weight"):
        open_checkpoint("math", str(folder))
    rewrite(folder, lambda tensors: tensors.pop("model.extra.weight"))

    original = load_file(folder / "model.safetensors")["model.norm.weight"]
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(8)}))
    with pytest.raises(InputError, match=rf"{key}model\.norm\.weight has shape \[8\].*\[16\]"):
        open_checkpoint("math", str(folder))

    quantized = original.to(torch.float8_e4m3fn)
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": quantized}))
    with pytest.raises(InputError, match=r"model\.norm\.weight is stored as .*float8"):
        open_checkpoint("math", str(folder))

    rewrite(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(InputError, match=rf"{key}tensor model\.norm\.weight is missing"):
        open_checkpoint("math", str(folder))


def test_a_missing_shard_is_named(sharded):
    shard = shard_with(sharded, "model.norm.weight")
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name}: missing.*download"):
        open_checkpoint("base", str(sharded))


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_shard_is_named(sharded, kept):
    shard = shard_with(sharded, "model.norm.weight")
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(InputError, match=rf"{shard.name}: truncated.*download"):
        open_checkpoint("base", str(sharded))


def test_a_corrupt_header_is_named(sharded):
    shard = shard_with(sharded, "model.norm.weight")
    content = bytearray(shard.read_bytes())
    content[8:40] = b"\xff" * 32
    shard.write_bytes(content)
    with pytest.raises(InputError, match=shard.name):
        open_checkpoint("base", str(sharded))


def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(sharded):
    other = shard_with(sharded, "model.embed_tokens.weight").name
    edit_index(sharded, **{"model.norm.weight": other})
    with pytest.raises(InputError, match=rf"{other}: model\.norm\.weight is not in it"):
        open_checkpoint("base", str(sharded))


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/passwd", "..", "", "x\\y", 3, None])
def test_an_index_opens_nothing_but_plain_files_of_its_folder(sharded, file):
    (sharded.parent / "a.safetensors").write_bytes(b"elsewhere")
    edit_index(sharded, **{"model.norm.weight": file})
    with pytest.raises(InputError, match=r"index\.json: weight_map names .*plain file names"):
        open_checkpoint("base", str(sharded))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_a_damaged_index_is_refused(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(
        InputError, match=r"index\.json: (not an index|not valid JSON|weight_map names)"
    ):
        open_checkpoint("base", str(sharded))


@pytest.fixture
def pickled(model_of, tmp_path):
    """Folder of a tiny Llama with pickled weights."""
    model = model_of()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    return tmp_path / "pickled"


def test_pickled_weights_are_refused_unless_allowed(pickled, saved):
    with pytest.raises(InputError, match=r"only pickled weights.*models\.allow_pickle"):
        open_checkpoint("base", str(pickled))
    allowed = open_checkpoint("base", str(pickled), allow_pickle=True)
    safe = open_checkpoint("base", str(saved("safe")))
    assert allowed.tensor_digests == safe.tensor_digests
    assert pickle.loads(pickle.dumps(allowed)).tensor_digests == safe.tensor_digests


def test_pickled_shards_are_read_through_their_index(pickled):
    whole = open_checkpoint("base", str(pickled), allow_pickle=True)
    (pickled / "pytorch_model.bin").unlink()
    for i, name in enumerate(whole.names()):
        torch.save({name: whole.read(name).clone()}, pickled / f"part{i % 2}-{i}.bin")
    weight_map = {name: f"part{i % 2}-{i}.bin" for i, name in enumerate(whole.names())}
    index = json.dumps({"weight_map": weight_map})
    (pickled / "pytorch_model.bin.index.json").write_text(index)
    again = open_checkpoint("base", str(pickled), allow_pickle=True)
    assert again.tensor_digests == whole.tensor_digests


def test_a_pickle_that_runs_code_is_refused_even_when_pickles_are_allowed(pickled, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"model.norm.weight": Bomb()}, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: cannot be opened"):
        open_checkpoint("base", str(pickled), allow_pickle=True)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_without_config_or_weights_is_refused(saved, tmp_path):
    with pytest.raises(InputError, match=r"models\.base: .*no config\.json"):
        open_checkpoint("base", str(tmp_path))
    folder = saved("a")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"models\.base: .*no weights"):
        open_checkpoint("base", str(folder))


def refusal(place, name="base"):
    with pytest.raises(InputError) as caught:
        open_checkpoint(name, str(place))
    return str(caught.value)


def test_what_a_folder_has_in_the_place_of_weights_is_said(saved, sharded):
    folder = saved("a")
    (folder / "model.safetensors").rename(folder / "tuned-Q4.gguf")
    assert "only weights in GGUF (tuned-Q4.gguf), which are not read" in refusal(folder)
    (sharded / "model.safetensors.index.json").unlink()
    found = refusal(sharded)
    assert "has model-00001-of-" in found
    assert "download model.safetensors.index.json too" in found


def test_a_pointer_of_git_lfs_is_told_from_damaged_weights(saved):
    path = saved("a") / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "model.safetensors: a pointer of Git LFS" in refusal(path.parent)


def test_a_folder_above_a_model_or_a_file_in_it_is_said_to_be_one(saved):
    folder = saved("a")
    assert "no config.json; give the folder of a transformers model; there is one in a" in refusal(
        folder.parent
    )
    with pytest.raises(InputError, match=r"model\.safetensors: a file; give the folder of"):
        find_folder("math", str(folder / "model.safetensors"))
    with pytest.raises(InputError, match="write / between folders"):
        find_folder("math", "models\\math")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "nonesuch"}', "{}"])
def test_a_config_that_cannot_be_used_is_named(saved, text):
    folder = saved("a")
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"models\.base: .*config\.json: (transformers|not )"):
        open_checkpoint("base", str(folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"models\.experts\.math: .*gone: no such folder"):
        find_folder("math", str(tmp_path / "gone"))


def test_a_hub_id_that_is_not_cached_says_so_offline():
    with pytest.raises(InputError, match=r"models\.base: org/model@v1: .*cached.*hf download"):
        find_folder("base", "org/model@v1")


def test_a_cached_hub_id_opens_at_its_revision(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--model"
    for revision, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        shutil.copytree(saved(revision, seed=len(revision)), repo / "snapshots" / commit)
    assert find_folder("base", "org/model").name == "a" * 40
    at_revision = open_checkpoint("base", "org/model@v1")
    assert at_revision.folder.name == "b" * 40
    assert at_revision.digest == open_checkpoint("base", str(tmp_path / "v1")).digest


def test_only_what_is_read_is_downloaded(monkeypatch, tmp_path):
    asked = {}

    def download(repo, **arguments):
        asked.update(arguments, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_folder("base", "org/model@v1") == tmp_path
    assert (asked["repo"], asked["revision"]) == ("org/model", "v1")
    assert not {"*.bin", "*.py"} & set(asked["allow_patterns"])
    files = ["model.safetensors", "config.json", "original/consolidated.00.safetensors"]
    wanted = filter_repo_objects(
        files,
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(wanted) == files[:2]
    find_folder("base", "org/model", allow_pickle=True, trust_remote_code=True)
    assert {"*.bin", "*.py"} <= set(asked["allow_patterns"])
