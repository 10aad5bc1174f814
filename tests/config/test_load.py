"""A campaign file is read, overridden and checked, or refused with file and key."""

import pytest
import yaml
from campaign_data import data

from evomerge.common.errors import InputError
from evomerge.config import load_campaign


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(data(stages=[{"name": "one", "space": data()["space"]}])))
    return path


def test_a_key_that_stands_twice_in_a_section_is_refused_with_its_lines(file):
    lines = len(file.read_text().splitlines())
    file.write_text(file.read_text() + "<<: &seeded {seed: 1}\nseed: 2\nseed: 3\n")
    with pytest.raises(InputError) as caught:
        load_campaign(file)
    assert f"the key 'seed' stands twice in one section, on lines {lines + 2} and {lines + 3}" in (
        str(caught.value)
    )


def test_overrides_reach_keys_positions_and_named_sections(file):
    config = load_campaign(
        file,
        [
            "seed=3",
            "optimizer.kind=de",
            "fitness.tasks.0.weight=2",
            "stages.one.trials=7",
            "space.weights.genes={weight: [0, 2]}",
            "stages.0.space.weights.genes={weight: [0, 2]}",
        ],
    )
    assert (config.seed, config.optimizer.kind) == (3, "de")
    assert config.fitness.tasks[0].weight == 2
    assert config.stages[0].trials == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: write it as key.path=value"),
        ("=3", "write it as key.path=value"),
        ("name.first=x", "--set name.first=x: name is not a section"),
        ("fitness.tasks.9.weight=2", "fitness.tasks.9 is not a section"),
        ("sed=3", "campaign.yaml: sed: unknown key; did you mean 'seed'?"),
        ("seed=[", "--set seed=[: not valid YAML"),
    ],
)
def test_overrides_that_reach_nothing_are_refused(file, override, message):
    with pytest.raises(InputError) as caught:
        load_campaign(file, [override])
    assert message in str(caught.value)


def test_a_file_that_is_missing_or_no_mapping_is_refused_by_its_name(tmp_path):
    path = tmp_path / "campaign.yaml"
    with pytest.raises(InputError, match=r"campaign\.yaml: cannot be read"):
        load_campaign(path)
    path.write_text("- a list")
    with pytest.raises(InputError, match=r"campaign\.yaml: expected a mapping with keys name"):
        load_campaign(path)
    path.write_text("name: [")
    with pytest.raises(InputError, match=r"campaign\.yaml: not valid YAML"):
        load_campaign(path)
