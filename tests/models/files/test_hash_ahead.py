"""Hashes made ahead are those of tensors, and digests on record are of unchanged files."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.models import checkpoint
from evomerge.models.checkpoint import open_checkpoint, tensor_digest
from evomerge.models.files import hash_ahead
from evomerge.models.files.hash_ahead import hashed_ahead, hashing_ahead


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def settled(monkeypatch):
    """Files count as unchanged for long, however new they are."""
    monkeypatch.setattr(hash_ahead, "_SETTLED", -3600.0)


@pytest.fixture
def unhashed(monkeypatch):
    """() -> from now on no tensor is hashed in this process."""

    def forbid():
        def refuse(tensor):
            raise AssertionError("a tensor was hashed")

        monkeypatch.setattr(checkpoint, "tensor_digest", refuse)

    return forbid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hashes_made_ahead_are_those_of_the_tensors(
    tmp_path, model_of, monkeypatch, unhashed, dtype
):
    model_of("llama").to(dtype).save_pretrained(tmp_path / "m", max_shard_size="4KB")
    plain = open_checkpoint("base", str(tmp_path / "m"))
    wanted = {name: tensor_digest(plain.read(name)) for name in plain.names()}
    monkeypatch.setattr(hash_ahead, "LARGE", 0)
    unhashed()
    with hashing_ahead([tmp_path / "m"]):
        assert open_checkpoint("base", str(tmp_path / "m")).tensor_digests == wanted
    assert hashed_ahead(tmp_path / "m") is None


def test_what_is_hashed_ahead_is_forgotten_when_a_file_changes(saved, monkeypatch):
    folder = saved("m")
    monkeypatch.setattr(hash_ahead, "LARGE", 0)
    with hashing_ahead([folder]):
        assert hashed_ahead(folder) is not None
        (folder / "model.safetensors").touch()
        assert hashed_ahead(folder) is None


def test_small_models_and_folders_without_models_start_no_process(saved, tmp_path):
    with hashing_ahead([saved("m"), tmp_path / "nowhere"]):
        assert hashed_ahead(tmp_path / "m") is None


def test_digests_on_record_are_not_made_again(saved, settled, unhashed):
    folder = saved("m")
    first = open_checkpoint("base", str(folder))
    known = dict(first.tensor_digests)
    unhashed()
    again = open_checkpoint("base", str(folder))
    assert again.tensor_digests == known
    assert again.digest == first.digest
    assert not again.non_finite


def test_a_byte_that_changes_behind_an_old_time_is_noticed(saved, settled):
    folder = saved("m")
    before = open_checkpoint("base", str(folder)).digest
    file = folder / "model.safetensors"
    was = file.stat()
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "other", metadata={"format": "pt"})
    with file.open("r+b") as opened:  # the same inode, size and time
        opened.write((folder / "other").read_bytes())
    (folder / "other").unlink()
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size == was.st_size
    assert open_checkpoint("base", str(folder)).digest != before


def test_files_that_have_just_changed_are_not_on_record(saved, monkeypatch):
    monkeypatch.setattr(hash_ahead, "_SETTLED", 3600.0)
    folder = saved("m")
    assert open_checkpoint("base", str(folder)).digest
    assert not (folder.parent / "cache" / "digests").exists()


def test_models_that_are_not_finite_are_not_on_record(saved, settled):
    folder = saved("m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        assert open_checkpoint("base", str(folder)).non_finite
