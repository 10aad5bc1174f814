"""Pages of what is read once go back to the kernel, and values stay what they are."""

import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from evomerge.models.files import page_release
from evomerge.models.files.page_release import reading_once, release
from evomerge.models.files.shards import read_stored


@pytest.fixture
def mapped(tmp_path):
    """() -> a mapped tensor of 64 MB, as yet unread."""
    save_file({"w": torch.ones(1 << 24)}, tmp_path / "model.safetensors")
    return lambda: read_stored(tmp_path, allow_pickle=False)["w"].tensor


def test_released_tensors_read_the_same_again_and_those_in_memory_keep_their_values(mapped):
    tensor, private = mapped(), torch.arange(1 << 20, dtype=torch.float32)
    values = tensor.clone()
    release([tensor, private, tensor.view(4096, 4096).T])
    assert torch.equal(tensor, values)
    assert torch.equal(private, torch.arange(1 << 20, dtype=torch.float32))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_pages_go_while_a_tensor_is_read_and_none_are_left_in_the_end(mapped):
    tensor, size = mapped(), (1 << 24) * 4
    before = page_release._file_pages()
    with reading_once([tensor], kept=size // 4):
        assert float(tensor.sum()) == 1 << 24
        last = time.monotonic() + 60
        while page_release._file_pages() - before > size // 4:
            assert time.monotonic() < last
            time.sleep(0.01)
        assert float(tensor.sum()) == 1 << 24
    assert page_release._file_pages() - before < size // 4
