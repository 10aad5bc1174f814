"""Sources brought to a device: the same bytes by every way, copies that overlap, bounded memory.

The device is the CPU; `HostCopyStream` does as `CopyStream` does, as late as a device may.
"""

from __future__ import annotations

import pytest
import torch
from merges import open_family, random_recipe

from evomerge.common.errors import NonFiniteError
from evomerge.materialize.feed import AHEAD, DeviceCache, MemoryMapped, Prefetched
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.materialize.plan import plan
from evomerge.methods import methods
from evomerge.recipe import BASE

ROOMY = 1 << 40


class HostCopyStream:
    """Copies are made when they are received, the latest that a device could make them."""

    device = torch.device("cpu")

    def __init__(self):
        self.pins, self.log = 0, []

    def pinned(self, tensor):
        self.pins += 1
        return tensor.clone()

    def send(self, tensor):
        self.log.append("send")
        return torch.full_like(tensor, float("nan")), tensor

    def receive(self, tensor, sent):
        self.log.append("receive")
        return tensor.copy_(sent)

    def mark(self):
        self.log.append("mark")
        return self.log.count("mark")

    def wait(self, mark):
        self.log.append(f"wait {mark}")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"), num_hidden_layers=2)


def recipe_of(models, name, seed=0):
    """A merge of one layer; the other is the base's."""
    return random_recipe(models, name, seed, layers=[0])


def filled(models, recipe, feed):
    steps = plan(recipe, models.layout, models.sources)
    targets = [(torch.empty(step.tensor.shape), step) for step in steps]
    Kernel(models.sources, feed=feed).fill_all(targets, recipe.seed)
    return {step.name: out for out, step in targets}


def assert_same_bytes(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value.view(torch.int32), theirs[name].view(torch.int32)), name


@pytest.mark.parametrize("name", methods())
def test_every_way_to_the_device_gives_the_same_bytes(models, name):
    sources = models.sources
    cached, prefetched = DeviceCache(sources, "cpu"), Prefetched(sources, HostCopyStream(), ROOMY)
    for seed in range(2):
        recipe = recipe_of(models, name, seed)
        expected = filled(models, recipe, MemoryMapped(sources))
        assert_same_bytes(filled(models, recipe, cached), expected)
        assert_same_bytes(filled(models, recipe, prefetched), expected)


def test_a_resident_model_is_written_through_a_feed(models):
    written = []
    for feed in (None, Prefetched(models.sources, HostCopyStream(), 0)):
        resident = Resident(models.layout, Kernel(models.sources, feed=feed), torch.float32)
        for seed in range(2):
            resident.write(recipe_of(models, "ties", seed))
        written.append(resident.model.state_dict())
    assert_same_bytes(*written)


def consumed(models, stream, room=ROOMY):
    """Take all steps through a stream, noting where each is merged."""
    steps = plan(recipe_of(models, "linear"), models.layout, models.sources)
    targets = [(torch.empty(step.tensor.shape), step) for step in steps]
    for index, _ in enumerate(Prefetched(models.sources, stream, room).each(targets)):
        stream.log.append(f"merge {index}")
    return steps


def test_the_next_steps_tensors_are_on_their_way_while_one_is_merged(models):
    stream = HostCopyStream()
    steps = consumed(models, stream)
    for index in range(len(steps) - 1):
        before = stream.log[: stream.log.index(f"merge {index}")]
        assert before.count("send") == sum(len(step.reads) for step in steps[: index + 1 + AHEAD])
        assert before.count("receive") == sum(len(step.reads) for step in steps[: index + 1])


def test_no_step_is_sent_before_the_device_has_done_with_the_one_three_before_it(models):
    stream = HostCopyStream()
    steps = consumed(models, stream)
    sends = [i for i, entry in enumerate(stream.log) if entry == "send"]
    for index in range(AHEAD + 2, len(steps)):
        first = sends[sum(len(step.reads) for step in steps[:index])]
        assert f"wait {index - AHEAD - 1}" in stream.log[:first]


@pytest.mark.parametrize("room", [0, 20_000, ROOMY])
def test_pinned_copies_are_kept_as_far_as_there_is_room(models, room):
    stream, recipe = HostCopyStream(), recipe_of(models, "linear")
    feed = Prefetched(models.sources, stream, room)
    expected = filled(models, recipe, feed)
    once = stream.pins
    assert_same_bytes(filled(models, recipe, feed), expected)
    again = stream.pins - once
    kept = sum(1 << (t.nbytes - 1).bit_length() for t in feed._pinned.values())
    assert kept <= room
    assert again == once - len(feed._pinned)
    assert {0: again == once, 20_000: 0 < again < once, ROOMY: again == 0}[room]


def test_tensors_cached_on_the_device_are_read_once(models, monkeypatch):
    reads = []
    source = type(models.sources[BASE])
    read = source.read
    monkeypatch.setattr(source, "read", lambda self, name: reads.append(name) or read(self, name))
    feed = DeviceCache(models.sources, "cpu")
    for seed in range(3):
        filled(models, recipe_of(models, "linear", seed), feed)
    assert reads
    assert len(reads) == len(feed._copies)


def test_layers_of_a_failed_candidate_are_written_again(models):
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    good = recipe_of(models, "linear")
    merges = tuple(
        m.model_copy(update={"parameters": {**m.parameters, "base_weight": 10.0}})
        if m.slot == 0
        else m.model_copy(update={"experts": {"math": {"weight": 0.0}}, "parameters": {}})
        for m in good.merges
    )
    bad = good.model_copy(update={"merges": merges})  # its embeddings are 0/0
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="embed_tokens"):
            resident.write(bad)
    resident.write(good)
    expected = Resident(models.layout, Kernel(models.sources), torch.float32)
    expected.write(good)
    assert_same_bytes(resident.model.state_dict(), expected.model.state_dict())
