"""A campaign's methods say what is calibrated, and find the files once they are made."""

from __future__ import annotations

import pytest
import tiny
from command_line import evomerge

from evomerge.campaign.calibrate import calibrate_campaign, plan_calibration
from evomerge.campaign.calibration_needs import needed_kinds
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign

REGMEAN = {"weights": {"method": "regmean", "genes": {"reduce": [0, 1]}, "aim": {"omega": [0, 1]}}}
TEXTS = {"task": "pick", "samples": 12, "tokens": 16}


@pytest.fixture
def path(tmp_path):
    return tiny.save_campaign(tmp_path, space=REGMEAN, calibration=TEXTS)


def test_methods_say_which_kinds_are_needed_of_whom(path):
    data = tiny.campaign_data(
        space={
            "weights": {
                "method": ["fisher", "ties"],
                "genes": {"weight": [0, 1]},
                "sparsify": {"kind": "fisher", "density": [0.2, 1]},
            }
        }
    )
    assert needed_kinds(load_campaign(data)) == {"math": ("fisher",), "lang": ("fisher",)}
    found = needed_kinds(load_campaign(path))
    assert found == {"base": ("mean_abs",), "math": ("gram",), "lang": ("gram",)}


@pytest.mark.slow
def test_a_campaign_is_told_what_to_make_and_finds_what_was_made(path):
    lacking = evomerge("check", path, "--no-measure", code=2)
    assert lacking.stdout.count("calibration of ") == 3
    assert "evomerge calibrate" in lacking.stderr.replace("\n", " ")
    result = evomerge("calibrate", path)
    made = [path.parent / f"statistics/{name}.safetensors" for name in ("base", "lang", "math")]
    assert sorted(result.stdout.split()) == [str(file) for file in made]
    assert "calibration of" not in evomerge("check", path, "--no-measure").stdout
    setup = prepare(load_campaign(path))
    recipe = setup.space.decode(setup.space.initial)
    assert recipe.calibration.keys() >= {"math", "lang"}


def test_files_of_other_texts_are_refused_by_name(path):
    calibrate_campaign(load_campaign(path))
    fewer = load_campaign(path, ["calibration.samples=10"])
    with pytest.raises(InputError, match=r"base.safetensors: was made of other texts"):
        prepare(fewer)


def test_a_files_place_may_be_named_before_it_is_made(path):
    place = "models.statistics={math: own/math.safetensors}"
    found = plan_calibration(load_campaign(path, [place]), only="math")
    assert [one.target for one in found] == [path.parent / "own/math.safetensors"]
