"""Checkpoints written tensor by tensor: the format, kills and resumes, and peak memory."""

import json
import os
import signal
import subprocess
import sys
from threading import Lock

import pytest
import tiny
import torch
from filelock import FileLock
from safetensors.torch import save_file
from streamed_recipe import recipe_of

from evomerge.common.errors import InputError
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.materialize.disk import checkpoint, shard
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.materialize.disk.shard import Entry, write_shard
from evomerge.materialize.kernel import Kernel
from evomerge.models.checks.checked_models import check_models
from evomerge.models.files.shards import read_stored

SHARD_BYTES = 12_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    paths = tiny.save_family(tmp_path_factory.mktemp("family"), ("math",), tie_word_embeddings=True)
    return check_models(ModelsConfig(base=str(paths["base"]), experts={"math": str(paths["math"])}))


def export(models, to, weight=0.5, **dtype):
    return write_checkpoint(
        recipe_of(models, weight), models, DtypeConfig(**dtype), to, shard_bytes=SHARD_BYTES
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_export(models, to, moment, monkeypatch, **options):
    """Export in a child that kills itself at the n-th merged tensor, or before the renaming."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        filled, fill = [], Kernel.fill

        def counting(self, out, step, seed):
            filled.append(step.name)
            if len(filled) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            fill(self, out, step, seed)

        monkeypatch.setattr(Kernel, "fill", counting)
        if moment is None:
            kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            monkeypatch.setattr(checkpoint, "_publish", kill)
        export(models, to, **options)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not to.exists()
    return to.with_name(f".{to.name}.partial")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("moment", [1, 8, 15, None])
def test_a_killed_export_goes_on_at_the_last_complete_shard(models, tmp_path, monkeypatch, moment):
    expected = contents(export(models, tmp_path / "expected"))
    assert sum(name.endswith(".safetensors") for name in expected) > 3
    partial = killed_export(models, tmp_path / "out", moment, monkeypatch)
    complete = {path.name: path.stat() for path in partial.glob("*.safetensors")}
    assert (len(complete) > 0) == (moment != 1)
    filled, fill = [], Kernel.fill

    def counting(self, out, step, seed):
        filled.append(step.name)
        fill(self, out, step, seed)

    monkeypatch.setattr(Kernel, "fill", counting)
    out = export(models, tmp_path / "out")
    assert contents(out) == expected
    for name, before in complete.items():
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    written = sum(len(stored_names(out / name)) for name in complete)
    assert len(filled) == len(models.layout.names) - written
    assert not partial.exists()


def stored_names(path):
    header = path.read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    return names.keys() - {"__metadata__"}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("before", [{"weight": 0.25}, {"weights": "float32"}])
def test_what_a_killed_export_of_another_checkpoint_left_is_not_used(
    models, tmp_path, monkeypatch, before
):
    expected = contents(export(models, tmp_path / "expected"))
    partial = killed_export(models, tmp_path / "out", None, monkeypatch, **before)
    assert len(list(partial.glob("*.safetensors"))) > 3
    assert contents(export(models, tmp_path / "out")) == expected


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_truncated_shard_is_written_again(models, tmp_path, monkeypatch):
    expected = contents(export(models, tmp_path / "expected"))
    partial = killed_export(models, tmp_path / "out", None, monkeypatch)
    shard = min(partial.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 2)
    assert contents(export(models, tmp_path / "out")) == expected


def test_ctrl_c_keeps_the_shards_and_an_error_does_not(models, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    def failed(*_):
        raise InputError("no")

    partial = tmp_path / ".out.partial"
    monkeypatch.setattr(checkpoint, "_publish", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(models, tmp_path / "out")
    assert len(list(partial.glob("*.safetensors"))) > 3
    monkeypatch.setattr(checkpoint, "_publish", failed)
    with pytest.raises(InputError, match="no"):
        export(models, tmp_path / "out")
    assert not partial.exists()


def test_two_processes_do_not_write_one_checkpoint(models, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    with (
        FileLock(tmp_path / ".out.partial" / ".lock"),
        pytest.raises(InputError, match="another process"),
    ):
        export(models, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shard_has_the_bytes_that_safetensors_would_write(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (3, 5), "a": (7,), "é": (2, 2, 2)}
    tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_shard(
        tmp_path / "ours", [Entry(n, shapes[n], dtype, lambda n=n: tensors[n]) for n in tensors]
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_of_several_dtypes_share_a_shard(tmp_path):
    tensors = {
        "a": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.arange(4.0),
        "c": torch.full((1,), 2.0, dtype=torch.float64),
    }
    write_shard(
        tmp_path / "model.safetensors",
        [Entry(n, tuple(t.shape), t.dtype, lambda t=t: t) for n, t in tensors.items()],
    )
    read = read_stored(tmp_path, allow_pickle=False)
    for name, tensor in tensors.items():
        assert torch.equal(read[name].tensor, tensor)
        assert read[name].tensor.dtype == tensor.dtype


PEAK = """
import sys
from pathlib import Path
from evomerge.config import DtypeConfig, ModelsConfig
from evomerge.materialize.disk.checkpoint import write_checkpoint
from evomerge.models.checks.checked_models import check_models
from streamed_recipe import recipe_of

folder = Path(sys.argv[1])
experts = {"math": str(folder / "math")}
models = check_models(ModelsConfig(base=str(folder / "base"), experts=experts))
write_checkpoint(recipe_of(models), models, DtypeConfig(), folder / "out")
# getrusage would tell the peak of the process that started this one, where that is higher
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""


def peak(folder, layers):
    """MiB held at most while two models of 14 MB a layer are merged."""
    tiny.save_family(
        folder,
        ("math",),
        dtype=torch.float32,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=layers,
        tie_word_embeddings=True,
    )
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return int(ran.stdout.split()[-1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_peak_memory_does_not_grow_with_the_model(tmp_path):
    small, large = peak(tmp_path / "small", 9), peak(tmp_path / "large", 18)
    more = sum(path.stat().st_size for path in (tmp_path / "large").glob("*/*.safetensors"))
    more -= sum(path.stat().st_size for path in (tmp_path / "small").glob("*/*.safetensors"))
    assert more / 2**20 > 230
    # the digests, computed beside the writing, let go of pages a little later on a busy machine
    assert large - small < more / 2**20 / 4, (small, large)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_that_each_write_a_tensor_give_the_same_file_and_record(
    tmp_path, threads, together
):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.randn(50 + i, generator=generator) for i in range(20)}
    seen = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        write_shard(
            tmp_path / "ours",
            [Entry(n, tuple(t.shape), t.dtype, lambda t=t: t) for n, t in tensors.items()],
            seen.__setitem__,
            together,
        )
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert seen.keys() == tensors.keys()
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("together", [False, True])
def test_the_first_tensor_that_fails_in_the_order_of_the_file_is_the_one_that_is_named(
    tmp_path, together
):
    def fail(name):
        raise InputError(name)

    entries = [Entry(f"t{i}", (1,), torch.float32, lambda i=i: fail(f"t{i}")) for i in range(5)]
    with pytest.raises(InputError, match="t0"):
        write_shard(tmp_path / "model.safetensors", entries, together=together)
    assert not (tmp_path / "model.safetensors").exists()


def test_tensors_that_are_made_at_a_time_are_bounded_but_for_one_that_is_larger(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shard, "IN_FLIGHT", 2000)
    held, most, alone = [0], [], Lock()

    def make(size):
        with alone:
            held[0] += size * 4
            most.append(held[0])
        return torch.zeros(size)

    def written(_, tensor):
        with alone:
            held[0] -= tensor.nbytes

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        sizes = [900, 100, 100, 300, 200, 100, 400]
        entries = [
            Entry(f"t{i}", (n,), torch.float32, lambda n=n: make(n)) for i, n in enumerate(sizes)
        ]
        write_shard(tmp_path / "model.safetensors", entries, written)
    finally:
        torch.set_num_threads(before)
    assert max(most) == 3600
