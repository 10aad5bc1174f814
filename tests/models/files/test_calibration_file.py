"""Calibration files come back as they were written, and others are told from them."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from safetensors.torch import save_file

from evomerge.common.errors import InputError
from evomerge.models.files.calibration_file import (
    CalibrationHead,
    open_calibration,
    write_calibration,
)

Q, K, V = "layers.0.q_proj.weight", "layers.0.k_proj.weight", "layers.0.v_proj.weight"
HEAD = CalibrationHead(
    source="0" * 32,
    documents="ab",
    samples=3,
    tokens=40,
    max_tokens=16,
    same_input={K: Q, V: Q},
    seed=7,
)


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        f"fisher/{Q}": torch.rand(4, 3, generator=generator),
        f"fisher/{K}": torch.rand(2, 3, generator=generator),
        f"gram/{Q}": torch.rand(3, 3, generator=generator),
    }


@pytest.fixture
def written(tmp_path):
    return write_calibration(tmp_path / "math.safetensors", HEAD, some_tensors())


def test_a_file_comes_back_as_it_was_written(written):
    found = open_calibration(written)
    assert found.head == dataclasses.replace(HEAD, kinds=("fisher", "gram"))
    assert torch.equal(found.read("fisher", K), some_tensors()[f"fisher/{K}"])
    assert found.names("fisher") == (K, Q)
    assert not found.non_finite


def test_layers_of_one_input_share_its_gram_and_no_fisher(written):
    found = open_calibration(written)
    assert torch.equal(found.read("gram", V), found.read("gram", Q))
    assert found.read("fisher", V) is None
    assert found.read("gram", "another") is None


def test_the_digest_is_of_the_content_wherever_and_by_whatever_version_it_was_written(
    written, tmp_path
):
    digest = open_calibration(written).digest
    other = dataclasses.replace(HEAD, evomerge="another")
    again = write_calibration(tmp_path / "b.safetensors", other, dict(some_tensors().items()))
    assert open_calibration(again).digest == digest
    changed = some_tensors() | {f"fisher/{Q}": torch.zeros(4, 3)}
    assert open_calibration(write_calibration(again, HEAD, changed)).digest != digest
    reseeded = dataclasses.replace(HEAD, seed=8)
    assert open_calibration(write_calibration(again, reseeded, some_tensors())).digest != digest


def test_the_size_of_a_fisher_is_that_of_the_whole_model(written, tmp_path):
    every = torch.cat([t.flatten() for k, t in some_tensors().items() if k.startswith("fisher")])
    assert open_calibration(written).rms("fisher") == pytest.approx(
        float(every.double().square().mean().sqrt())
    )
    names = {k.removeprefix("fisher/"): t for k, t in some_tensors().items() if k[0] == "f"}
    save_file(names, tmp_path / "exp_avg_sq.safetensors")
    plain = open_calibration(tmp_path / "exp_avg_sq.safetensors")
    assert plain.rms("fisher") == pytest.approx(open_calibration(written).rms("fisher"))


def test_a_training_runs_second_moments_are_read_as_fisher(tmp_path):
    save_file({Q: torch.ones(4, 3)}, tmp_path / "exp_avg_sq.safetensors")
    found = open_calibration(tmp_path / "exp_avg_sq.safetensors")
    assert found.head.kinds == ("fisher",)
    assert found.head.source == ""
    assert torch.equal(found.read("fisher", Q), torch.ones(4, 3))


def test_a_file_is_opened_again_where_it_was_pickled_to(written):
    found = open_calibration(written)
    again = pickle.loads(pickle.dumps(found))
    assert again.digest == found.digest


def test_what_is_not_finite_is_named(tmp_path):
    tensors = {f"fisher/{Q}": torch.tensor([[1.0, torch.nan]])}
    found = open_calibration(write_calibration(tmp_path / "x.safetensors", HEAD, tensors))
    assert str(found.non_finite[f"fisher/{Q}"]) == "NaN (1 of 2 values)"


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="no such file; make one with evomerge calibrate"):
        open_calibration(tmp_path / "gone.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(InputError, match=r"broken\.safetensors"):
        open_calibration(tmp_path / "broken.safetensors")
    save_file({f"fisher/{Q}": torch.ones(2)}, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="metadata lack format"):
        open_calibration(tmp_path / "bare.safetensors")
    save_file(
        {Q: torch.ones(2)}, tmp_path / "new.safetensors", {"format": "evomerge-calibration-9"}
    )
    with pytest.raises(InputError, match="which this version does not read"):
        open_calibration(tmp_path / "new.safetensors")
    with pytest.raises(InputError, match="no kind of statistic 'hessian'"):
        write_calibration(tmp_path / "y.safetensors", HEAD, {f"hessian/{Q}": torch.ones(1)})
