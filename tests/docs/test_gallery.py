"""The gallery's campaigns run, and their page shows each file, its lines, its picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image
from silent import Silent

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.report.all_figures import view_of
from evomerge.study.run_folder import open_run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import gallery  # noqa: E402

LIGHT = 150_000
"""The most bytes of a picture."""
SMALL = (
    *("workers.isolated=false", "fitness.splits={search: 16, select: 8, test: 8}"),
    *("fitness.select_top=2", "budget.trials=14"),
)
EXHIBITS = [pytest.param(one, id=one.name) for one in gallery.EXHIBITS]


def test_every_campaign_of_the_gallery_is_on_its_page():
    files = sorted(path.stem for path in gallery.CAMPAIGNS.glob("*.yaml"))
    assert files == sorted(one.name for one in gallery.EXHIBITS)


@pytest.mark.parametrize("exhibit", EXHIBITS)
def test_the_page_shows_the_files_lines_and_a_light_picture(exhibit):
    assert load_campaign(exhibit.file).name == exhibit.name
    page = gallery.PAGE.read_text(encoding="utf-8")
    assert f"evomerge search search_spaces/gallery/{exhibit.file.name}" in page
    assert f"```yaml\n{exhibit.lines()}\n```" in page, "run: python docs/gallery.py"
    assert f"![{exhibit.alt}](gallery/{exhibit.picture.name})" in page
    assert exhibit.picture.stat().st_size < LIGHT
    assert Image.open(exhibit.picture).width > 700


@pytest.mark.slow
@pytest.mark.parametrize("exhibit", EXHIBITS)
def test_a_campaign_of_the_gallery_gives_the_figure_that_its_page_shows(exhibit, tmp_path):
    start = ["initial=[{gradient: {steps: 2, batch: 4}}]"] if exhibit.name == "gradient" else []
    config = load_campaign(exhibit.file, [*SMALL, *start])
    with open_campaign(prepare(config), tmp_path, Silent()) as campaign:
        campaign.run()
    _, study = open_run(tmp_path)
    assert sum(e.optimizers_own for e in study.evaluations()) == 14
    assert not any(e.failed for e in study.evaluations())
    assert exhibit.figure in {figure.id for figure in view_of(study).figures}
