"""Every method gives the same bytes on 1, 2 and 4 threads, whatever OMP_NUM_THREADS says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading

import pytest
import torch
from calibrated_data import some_calibration

from evomerge.common.one_thread import one_thread
from evomerge.methods import methods
from evomerge.methods.core.decompositions import polar_factor, svd

REGISTRY = methods()
COUNTS = (1, 2, 4)
SHAPES = [(16, 32), (48, 32), (64, 64), (300, 200), (2, 65, 33), (70_001,)]
"""Odd ones, those on which LAPACK was seen to differ, and one that torch deals to threads."""
WHOLE = "import test_threads; print(test_threads.fingerprints())"


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def fingerprint(*tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def merged(name, shape, dtype=torch.float32):
    method = REGISTRY[name]
    count = method.experts[1] or 3
    generator = torch.Generator().manual_seed(3)
    base, *experts = (
        torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count + 1)
    )
    arguments = method.arguments({}, {f"e{i}": {} for i in range(count)}, "test")
    data = some_calibration(method.calibrated, shape, count, dtype=dtype)
    return method(base, experts, calibrated=data, **arguments)


def on_threads(function):
    found = []
    for count in COUNTS:
        torch.set_num_threads(count)
        found.append(function())
        assert torch.get_num_threads() == count, "left as it was"
    return found


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_method_has_the_same_bytes_on_any_number_of_threads(name, dtype):
    for shape in SHAPES:
        found = on_threads(lambda shape=shape: fingerprint(merged(name, shape, dtype)))
        assert len(set(found)) == 1, shape


def fingerprints():
    """All methods' in one digest."""
    return fingerprint(*(merged(name, shape) for name in REGISTRY for shape in SHAPES[:3]))


def test_every_method_has_the_same_bytes_whatever_omp_num_threads_says():
    found = set()
    for count in COUNTS:
        folder = os.path.dirname(__file__)
        helpers = os.path.join(os.path.dirname(folder), "helpers")
        known = filter(None, [os.environ.get("PYTHONPATH")])
        path = os.pathsep.join([folder, helpers, *known])
        limits = {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
        process = subprocess.run(
            [sys.executable, "-c", WHOLE],
            env={**os.environ, **limits, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(process.stdout)
    assert len(found) == 1


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_decompositions_have_the_same_bytes_on_any_number_of_threads(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for function in (lambda: svd(matrix), lambda: (polar_factor(matrix),)):
        assert len({fingerprint(*parts) for parts in on_threads(function)}) == 1


def test_python_threads_do_not_disturb_each_others_decompositions():
    matrices = [torch.randn(n, 70, generator=torch.Generator().manual_seed(n)) for n in (60, 90)]
    torch.set_num_threads(1)
    expected = [fingerprint(*svd(matrix)) for matrix in matrices]
    torch.set_num_threads(4)
    wrong = []

    def work(index):
        torch.set_num_threads(4)
        for _ in range(20):
            if fingerprint(*svd(matrices[index])) != expected[index]:
                wrong.append(index)
        if torch.get_num_threads() != 4:
            wrong.append("threads")

    workers = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert torch.get_num_threads() == 4


def test_within_one_thread_there_is_one_and_after_an_error_as_many_as_before():
    torch.set_num_threads(2)
    with one_thread(), one_thread():
        assert torch.get_num_threads() == 1
    with pytest.raises(RuntimeError), one_thread():
        svd(torch.full((2, 2), torch.nan))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "opcm", "tsvm", "twin"])
def test_the_signs_of_singular_vectors_do_not_matter(name, monkeypatch):
    """They are another LAPACK's business: only rounding may tell them apart."""
    expected = merged(name, (48, 32), torch.float64)
    plain, generator = torch.linalg.svd, torch.Generator().manual_seed(0)

    def flipped(matrix, full_matrices):
        u, s, vh = plain(matrix, full_matrices=full_matrices)
        signs = torch.randint(0, 2, s.shape, generator=generator).to(s.dtype) * 2 - 1
        return u * signs[..., None, :], s, vh * signs[..., None]

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    torch.testing.assert_close(merged(name, (48, 32), torch.float64), expected)


@pytest.mark.parametrize("name", ["iso_c", "tsvm"])
def test_equal_singular_values_may_come_in_any_basis(name, monkeypatch):
    """Task vectors whose singular values are all one: LAPACK may rotate U and V at will."""
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(24, 24, generator=generator, dtype=torch.float64) for _ in range(2)]
    base = torch.zeros(24, 24, dtype=torch.float64)
    expert = torch.linalg.qr(parts[0]).Q
    rotation = torch.linalg.qr(parts[1]).Q
    expected = REGISTRY[name](base, [expert])
    plain = torch.linalg.svd

    def rotated(matrix, full_matrices):
        u, s, vh = plain(matrix, full_matrices=full_matrices)
        return u @ rotation, s, rotation.mT @ vh

    monkeypatch.setattr(torch.linalg, "svd", rotated)
    torch.testing.assert_close(REGISTRY[name](base, [expert]), expected)
