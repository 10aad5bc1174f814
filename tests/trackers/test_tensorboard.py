"""TensorBoard itself: what it holds after kills and resumes."""

from __future__ import annotations

import pytest


def scalars(study):
    """tag → [(step, value)], every event of every file but those that were taken back."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(study.folder / "tensorboard"), {"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_holds_every_point_once_however_often_the_campaign_is_resumed(study):
    with study.run(trackers=["tensorboard"]):
        study.references().search([0.3, 0.9])
    with study.run(trackers=["tensorboard"]):
        study.search([0.5])
    with study.run(trackers=["tensorboard"]):
        study.search([0.2]).finish()
    assert study.ear.lines == []
    found = scalars(study)
    assert [step for step, _ in found["trial"]] == list(range(study.recorded))
    own = {e.number: e for e in study.study.evaluations() if e.optimizers_own}
    assert dict(found["search/value"]) == pytest.approx({n: e.value for n, e in own.items()})
    assert len(found["search/value"]) == 4
    best = own[6].value
    assert [v for _, v in found["search/best"]] == pytest.approx([own[5].value, best, best, best])
    assert len(found["search/parent/math"]) == len(found["test/finalist"]) == 1
    assert [step for step, _ in found["task/add"]] == list(own)


def test_tensorboard_takes_back_a_trial_that_a_kill_cut_short(study):
    with study.run(trackers=["tensorboard"]):
        study.references().search([0.3])
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(study.folder / "tensorboard")) as cut:
        cut.add_scalar("search/value", 0.125, 6)
    with study.run(trackers=["tensorboard"]):
        study.search([0.9])
    values = dict(scalars(study)["search/value"])
    assert len(scalars(study)["search/value"]) == 2
    assert values[6] == pytest.approx(study.study.evaluations()[6].value)


@pytest.mark.parametrize(
    ("level", "said"),
    [(0.05, b"No merge beats `lang`: trial 5"), (0.95, b"Trial 5 beats the best")],
)
def test_tensorboard_holds_the_verdict(study, level, said):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with study.run(trackers=["tensorboard"]):
        study.references().search([0.3]).finish(level)
    found = module.EventAccumulator(str(study.folder / "tensorboard")).Reload()
    (event,) = found.Tensors("verdict/text_summary")
    assert said in event.tensor_proto.string_val[0]
