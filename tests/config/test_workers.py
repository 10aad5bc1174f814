import pytest
from campaign_data import parsed, refusal


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"gpus_per_worker": 1}, "gpus_per_worker needs kind: ray"),
        ({"address": "auto"}, "address needs kind: ray"),
        ({"count": "auto"}, "count: auto needs kind: ray"),
        ({"isolated": False, "timeout": 60}, "timeout needs isolated: true"),
        ({"isolated": False, "memory": 8}, "memory needs isolated: true"),
        ({"count": 2, "memory": 8}, "Ray has its own limit"),
        ({"kind": "ray", "count": "auto"}, "needs cpus_per_worker or gpus_per_worker"),
        ({"kind": "ray", "gpus_per_worker": 1.5}, "above 1 write a whole number"),
        (
            {"kind": "ray", "gpus_per_worker": 2, "model_parallel": False},
            "without model_parallel one is used",
        ),
        ({"kind": "ray", "model_parallel": True}, "needs gpus_per_worker: 2 or more"),
        ({"kind": "ray", "copy_to": "models"}, "write an absolute path"),
        (
            {"device": "gpu"},
            "workers.device: expected 'auto', 'cpu', 'cuda', 'xpu' or 'mps'",
        ),
        ({"kind": "ray", "device": "cpu", "gpus_per_worker": 1}, "device: cpu uses no GPU"),
        ({"kind": "ray", "device": "xpu"}, "device: xpu on Ray needs gpus_per_worker"),
    ],
)
def test_workers_that_contradict_themselves_are_refused(workers, message):
    assert message in refusal(workers=workers)


def test_several_workers_are_on_ray_and_several_gpus_spread_a_model():
    assert not parsed().workers.on_ray
    assert parsed(workers={"count": 2}).workers.on_ray
    assert parsed(workers={"kind": "ray", "gpus_per_worker": 2}).workers.spreads


def test_a_local_worker_is_isolated_unless_one_says_otherwise_and_may_have_a_time_out():
    assert parsed().workers.isolated
    assert not parsed(workers={"isolated": False}).workers.isolated
    assert parsed(workers={"timeout": 60, "memory": 8}).workers.timeout == 60
    assert parsed(workers={"count": 2, "isolated": False}).workers.on_ray
