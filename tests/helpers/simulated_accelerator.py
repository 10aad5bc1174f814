"""An accelerator made of Python and of the host's memory: code for GPUs runs, and its faults show.

A tensor of the device `simgpu` holds a tensor on the CPU; every operation runs on that, so that
results are the CPU's bit by bit. Beside the results, the device keeps books as a GPU would have it:

- A tensor on the CPU beside one on the device raises, but for a number that an operation takes.
- Copies between host and device are counted in bytes.
- Streams run by themselves. What was written on one may be read on another only behind an event
  that was waited for, and by the host only behind a synchronisation; else the read raises. A copy
  from pinned memory is made as late as it may be, so that memory that is reused too early shows.
- Memory of a tensor made on one stream and used on another must have been recorded there before it
  is freed (`record_stream`); `violations` lists what was not.
- Beyond `capacity` bytes of live tensors, `torch.OutOfMemoryError` is raised.

It stands on `torch.utils.backend_registration`'s private set-up for devices in Python, which torch
may change; it was written for 2.13. Registering a device is for the life of the process, but
`torch.accelerator` says that none is available while `running` is not active.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NAME = "simgpu"
HOST = "host"
GB = 10**6
"""One gigabyte at a scale of 1:1000."""

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_TAKES_NO_NUMBERS = {  # of the host's, even without dimensions
    *(aten.cat.default, aten.stack.default, aten.index_select.default, aten.gather.default),
    *(aten.mm.default, aten.bmm.default, aten.embedding.default, aten.scatter.src),
}


class Stream:
    """A queue of work; `seen` says how much of every other queue's was done before its next."""

    _numbers = itertools.count()

    def __init__(self, device: Any = None) -> None:
        self.number, self.seen = next(Stream._numbers), Counter()

    def record_event(self) -> Event:
        return Event(Counter({**self.seen, self.number: DEVICE.asked[self.number]}))

    def wait_event(self, event: Event) -> None:
        self.seen |= event.reached

    def synchronize(self) -> None:
        self.record_event().synchronize()


@dataclass(frozen=True)
class Event:
    """A place in the queues."""

    reached: Counter

    def synchronize(self) -> None:
        DEVICE.host_seen |= self.reached


@dataclass(eq=False)
class Block:
    """The memory of some tensors.

    Attributes:
        stream: the number of the one that it belongs to.
        written: (stream, place in its queue) of the last write.
        used: numbers of streams that used it; `recorded`: of those that were recorded.
        late: makes the copy that fills it, as soon as somebody may read it.
    """

    device: Device
    nbytes: int
    stream: int
    written: tuple[int, int]
    used: set[int] = field(default_factory=set)
    recorded: set[int] = field(default_factory=set)
    late: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.run = self.device.run
        self.device.live += self.nbytes
        self.device.peak = max(self.device.peak, self.device.live)

    def __del__(self) -> None:
        if self.run != self.device.run:
            return
        self.device.live -= self.nbytes
        if unrecorded := self.used - self.recorded - {self.stream}:
            self.device.violations.append(f"memory freed that streams {unrecorded} may still use")


class Device:
    """The books of the device.

    Attributes:
        capacity: bytes; live, peak: of tensors.
        to_device, to_host: bytes copied; `copies` the number of copies either way.
        without: dtypes that it has not.
    """

    def __init__(self) -> None:
        self.active, self.default, self.stream = False, Stream(), None
        self.run = 0
        self.reset()

    def reset(self, capacity: int = 1 << 60, without: tuple[torch.dtype, ...] = ()) -> None:
        """Begin anew; tensors of earlier runs that are still there count no more."""
        self.run += 1
        self.capacity, self.without, self.live, self.peak = capacity, without, 0, 0
        self.to_device = self.to_host = self.copies = self.ran_out = 0
        self.violations: list[str] = []
        self.asked: Counter = Counter()
        self.host_seen: Counter = Counter()
        self.stream = self.default = Stream()
        self.pinned: set[int] = set()

    def make(self, inner: Tensor) -> Simulated:
        """Return a tensor of the device that holds this one, in memory of its own."""
        if inner.dtype in self.without:
            raise TypeError(f"{NAME} has no {inner.dtype}")
        nbytes = inner.untyped_storage().nbytes()
        if self.live + nbytes > self.capacity:
            self.ran_out += 1
            raise torch.OutOfMemoryError(
                f"{NAME} out of memory: {nbytes} bytes asked for, "
                f"{self.capacity - self.live} of {self.capacity} free"
            )
        number = self.stream.number
        self.asked[number] += 1
        return Simulated(inner, Block(self, nbytes, number, (number, self.asked[number])))

    def use(self, tensor: Simulated, what: Any) -> None:
        """Refuse what the present stream may not use yet."""
        block, number = tensor.block, self.stream.number
        stream, place = block.written
        if stream != number and self.stream.seen[stream] < place:
            raise RuntimeError(f"{what} uses a tensor before the copy of it was waited for")
        block.used.add(number)
        if block.late is not None:
            late, block.late = block.late, None
            late()

    def written(self, tensor: Simulated) -> None:
        """Note a write on the present stream."""
        number = self.stream.number
        self.asked[number] += 1
        tensor.block.written = number, self.asked[number]

    def finish(self) -> None:
        """Let the host wait for everything."""
        self.host_seen |= self.asked


class Simulated(torch.Tensor):
    """A tensor of the device: `inner` on the CPU, in the memory `block`."""

    inner: Tensor
    block: Block

    @staticmethod
    def __new__(cls, inner: Tensor, block: Block) -> Simulated:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: Tensor, block: Block) -> None:
        assert type(inner) is Tensor, (type(inner), inner.shape)
        self.inner, self.block = inner, block

    def record_stream(self, stream: Stream) -> None:
        self.block.recorded.add(stream.number)

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def pin_memory(self, device: Any = None) -> Tensor:
        raise RuntimeError("only tensors of the host can be pinned")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, dict(kwargs or {}))


DEVICE = Device()


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation of which some tensor, or the result, is of the device."""
    # 0. what is made of other operations comes as such under `inference_mode`
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE):
        out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
    tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    # 1. copies between the devices
    if func is aten._to_copy.default:
        return _to_copy(args[0], kwargs)
    if func is aten.copy_.default:
        return _copied(*args)
    if func is aten._local_scalar_dense.default:
        DEVICE.use(args[0], func)
        _count("to_host", args[0].inner.nbytes)
        DEVICE.finish()
        return func(args[0].inner)
    # 2. the operation itself, on the device's tensors alone
    numbers = func not in _TAKES_NO_NUMBERS
    for tensor in tensors:
        if isinstance(tensor, Simulated):
            DEVICE.use(tensor, func)
        elif tensor.dim() > 0 or not numbers:
            raise RuntimeError(
                f"{func}: a tensor {tuple(tensor.shape)} on {tensor.device} among those on {NAME}"
            )
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    kwargs.pop("pin_memory", None)
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    return _wrapped(func, args, kwargs, out)


def _wrapped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """What was written is the tensor that was given; views share its memory; the rest is new."""
    schema = func._schema
    named = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    for name in written:
        for tensor in tree_leaves(named.get(name)):
            if isinstance(tensor, Simulated):
                DEVICE.written(tensor)
    if written and schema.returns and all(r.alias_info for r in schema.returns):
        given = [named[name] for name in written if name in named]
        return given[0] if len(schema.returns) == 1 else tuple(given)
    known = {
        t.inner.untyped_storage()._cdata: t.block
        for t in tree_leaves((args, kwargs))
        if isinstance(t, Simulated)
    }

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        block = known.get(value.untyped_storage()._cdata)
        return DEVICE.make(value) if block is None else Simulated(value, block)

    return tree_map(wrap, out)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Simulated) else value


def _count(way: str, nbytes: int) -> None:
    setattr(DEVICE, way, getattr(DEVICE, way) + nbytes)
    DEVICE.copies += 1


def _to_copy(source: Simulated, kwargs: dict[str, Any]) -> Tensor:
    """`Tensor.to` of a tensor of the device; the host's come as `empty_strided` and `copy_`."""
    device, waits = kwargs.pop("device", None), not kwargs.pop("non_blocking", False)
    DEVICE.use(source, "a copy")
    out = aten._to_copy.default(source.inner, **kwargs)
    if device is None or torch.device(device).type != "cpu":
        return DEVICE.make(out)
    _to_host(source, waits)
    return out


def _to_host(source: Simulated, waits: bool) -> None:
    if not waits:
        raise RuntimeError("a copy to the host must be waited for")
    _count("to_host", source.inner.nbytes)
    DEVICE.finish()


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`Tensor.copy_`, in any direction."""
    for tensor in (target, source):
        if isinstance(tensor, Simulated):
            DEVICE.use(tensor, "copy_")
    if not isinstance(target, Simulated):
        assert isinstance(source, Simulated)
        _to_host(source, not non_blocking)
        return target.copy_(source.inner)
    DEVICE.written(target)
    if isinstance(source, Simulated):
        target.inner.copy_(source.inner)
        return target
    _count("to_device", source.nbytes)
    if non_blocking and source.untyped_storage().data_ptr() in DEVICE.pinned:
        inner = target.inner.fill_(77)
        target.block.late = lambda: inner.copy_(source)
    else:  # memory that is not pinned is read before the call returns
        target.inner.copy_(source)
    return target


class Module:
    """What torch asks of `torch.simgpu`, by the names of `torch.cuda`."""

    default_generators = ()
    Stream, Event = Stream, Event

    def is_available(self) -> bool:
        return DEVICE.active

    def is_initialized(self) -> bool:
        return DEVICE.active

    def device_count(self) -> int:
        return int(DEVICE.active)

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """It draws from the host's generator."""

    def get_device_name(self, device: Any = None) -> str:
        return "Simulated GPU"

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return DEVICE.capacity - DEVICE.live, DEVICE.capacity

    def memory_allocated(self, device: Any = None) -> int:
        return DEVICE.live

    memory_reserved = memory_allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        return DEVICE.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        DEVICE.peak = DEVICE.live

    def synchronize(self, device: Any = None) -> None:
        DEVICE.finish()

    def current_stream(self, device: Any = None) -> Stream:
        return DEVICE.stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[Stream]:
        before, DEVICE.stream = DEVICE.stream, stream
        try:
            yield stream
        finally:
            DEVICE.stream = before


_registered: list[torch.library.Library] = []


def _register() -> None:
    """Register the device, once for the process, with the operations that make tensors of it."""
    if _registered:
        return
    registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("aten", "IMPL")
    _registered.append(library)

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        return DEVICE.make(torch.empty(size, dtype=dtype, device="cpu"))

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return DEVICE.make(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def copy_from(source, target, non_blocking=False):
        return _copied(target, source, non_blocking)

    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")


@contextmanager
def running(capacity: int = 1 << 60, without: tuple[torch.dtype, ...] = ()) -> Iterator[Device]:
    """Have the device there inside the block, with so much memory.

    Yields:
        Its books.

    Raises:
        AssertionError: memory was freed that a stream may still have used.
    """
    _register()
    DEVICE.reset(capacity, without)
    pin = Tensor.pin_memory

    def pin_memory(self: Tensor, device: Any = None) -> Tensor:
        copy = self.clone()
        address = copy.untyped_storage().data_ptr()
        DEVICE.pinned.add(address)
        weakref.finalize(copy, DEVICE.pinned.discard, address)
        return copy

    Tensor.pin_memory = pin_memory
    DEVICE.active = True
    try:
        # a backward pass on a thread of its own would know of no device that came after its start
        with torch.autograd.set_multithreading_enabled(False):
            yield DEVICE
    finally:
        DEVICE.active = False
        Tensor.pin_memory = pin
    assert not DEVICE.violations, DEVICE.violations
