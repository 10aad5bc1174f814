"""The simulated accelerator finds the faults that it is for."""

from __future__ import annotations

import pytest
import torch
from simulated_accelerator import NAME, Stream, running

from evomerge.common.accelerator import Accelerator, accelerators, available, device_name


def gpu():
    return torch.device(NAME, 0)  # known once it has run


def test_it_is_there_while_it_runs_and_not_after():
    with running(capacity=100):
        assert available() == NAME
        [found] = accelerators()
        assert found.device == gpu()
        assert found.memory() == (100, 100)
        assert device_name(gpu()) == "Simulated GPU"
    assert available() is None
    assert accelerators() == []


def test_results_are_the_cpus():
    values = torch.randn(5, 7)
    with running():
        there = values.to(NAME)
        assert there.device == gpu()
        found = (there @ there.mT).sort().values[1:3].cumsum(-1)
        assert torch.equal(found.cpu(), (values @ values.mT).sort().values[1:3].cumsum(-1))
        assert torch.arange(4, device=NAME).tolist() == [0, 1, 2, 3]
        view = there[1:3]
        view.mul_(0)
        assert there.sum(1).tolist()[1:3] == [0, 0]


def test_a_tensor_on_the_wrong_device_raises():
    with running():
        there = torch.ones(3, device=NAME)
        with pytest.raises(RuntimeError, match="on cpu among those on simgpu"):
            there + torch.ones(3)
        assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a number, as CUDA takes it
        with pytest.raises(RuntimeError, match="on cpu"):
            torch.stack([there[0], torch.tensor(1.0)])


def test_copies_are_counted():
    with running() as device:
        there = torch.ones(3).to(NAME)
        there.copy_(torch.zeros(3))
        assert (device.to_device, device.to_host) == (24, 0)
        assert there.sum().item() == 0
        there.cpu()
        assert (device.to_device, device.to_host, device.copies) == (24, 16, 4)


def test_a_copy_that_is_read_before_it_is_waited_for_raises():
    with running():
        accelerator, host = Accelerator(gpu()), torch.ones(3).pin_memory()
        stream = accelerator.stream()
        with accelerator.on(stream):
            copy = host.to(NAME, non_blocking=True)
            event = stream.record_event()
        with pytest.raises(RuntimeError, match="before the copy of it was waited for"):
            copy + 1
        accelerator.current_stream().wait_event(event)
        copy.record_stream(accelerator.current_stream())
        assert (copy + 1).tolist() == [2, 2, 2]


def test_pinned_memory_that_is_reused_too_early_shows():
    with running():
        host = torch.ones(3).pin_memory()
        copy = host.to(NAME, non_blocking=True)
        host.zero_()
        assert copy.tolist() == [0, 0, 0]


def test_memory_that_another_stream_uses_must_be_recorded_there():
    def use(record):
        accelerator, stream = Accelerator(gpu()), Stream()
        with accelerator.on(stream):
            copy = torch.ones(3).to(NAME)
            event = stream.record_event()
        accelerator.current_stream().wait_event(event)
        if record:
            copy.record_stream(accelerator.current_stream())
        return copy + 1

    with running():
        use(record=True)
    with pytest.raises(AssertionError, match="may still use"), running():
        use(record=False)


def test_memory_ends():
    with running(capacity=1000) as device:
        kept = [torch.zeros(100, device=NAME) for _ in range(2)]
        with pytest.raises(torch.OutOfMemoryError, match="400 bytes asked for, 200 of 1000 free"):
            torch.zeros(100, device=NAME)
        kept.pop()
        assert device.live == 400
        assert kept[0][1:].numel() == 99  # a view takes none
        assert (device.live, device.peak, device.ran_out) == (400, 800, 1)
        del kept
    assert device.live == 0


def test_a_dtype_that_it_lacks_raises():
    with running(without=(torch.float64,)), pytest.raises(TypeError, match=r"no torch\.float64"):
        torch.ones(3, device=NAME).double()


def test_gradients_are_the_cpus():
    values, weights = torch.randn(4, 3), torch.randn(3, requires_grad=True)
    (values @ weights).square().sum().backward()
    with running():
        there = weights.detach().to(NAME).requires_grad_(True)
        (values.to(NAME) @ there).square().sum().backward()
        assert there.grad.device == gpu()
        assert torch.equal(there.grad.cpu(), weights.grad)
