"""Run the campaigns of `search_spaces/gallery/`, draw their pictures, and write `docs/gallery.md`.

`python docs/gallery.py` runs all six anew; with `--runs DIR` runs are kept there, and finished ones
are shown as they are. Pictures are figures of the report, photographed in Debian's chromium
(`apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
CAMPAIGNS = ROOT / "search_spaces" / "gallery"
PICTURES = DOCS / "gallery"
PAGE = DOCS / "gallery.md"
WIDTH = 760
"""Pixels that a picture is wide, at 1.5 of the screen's for each."""
INTRODUCTION = """\
# Gallery

Six small campaigns, each of which shows one thing. They run on the quickstart's models, without a
GPU or a network, in about half a minute each on two free cores. Copy the lines that you need into a
campaign of your own. The files are in `search_spaces/gallery/` of the repository; run the commands
in the repository's folder. `python docs/gallery.py` made this page and its pictures, which are
figures of the reports.
"""


@dataclass(frozen=True)
class Exhibit:
    """One campaign of the gallery.

    Attributes:
        name: of the campaign, its file and its picture.
        title: of the page's section.
        shows: text above the file's lines.
        keys: the top-level keys of the campaign file whose lines are shown.
        figure: id of the report's figure.
        alt: what the picture shows, for those who do not see it.
        seen: text below the picture.
    """

    name: str
    title: str
    shows: str
    keys: tuple[str, ...]
    figure: str
    alt: str
    seen: str

    @property
    def file(self) -> Path:
        """The campaign file."""
        return CAMPAIGNS / f"{self.name}.yaml"

    @property
    def picture(self) -> Path:
        """The picture's file."""
        return PICTURES / f"{self.name}.png"

    def lines(self) -> str:
        """The file's lines that matter, as they stand there."""
        shown, taking = [], False
        for line in self.file.read_text(encoding="utf-8").splitlines():
            if not line.startswith((" ", "#")):
                taking = line.partition(":")[0] in self.keys
            if taking:
                shown.append(line)
        return "\n".join(shown)

    def section(self, result: dict[str, Any]) -> str:
        """Write the page's section; `result`: see `measured`."""
        return f"""\
## {self.title}

{filled(self.shows)}

```yaml
{self.lines()}
```

```console
evomerge search search_spaces/gallery/{self.file.name}
evomerge report runs/{self.name}
```

![{self.alt}](gallery/{self.picture.name})

{filled(f"{self.seen} {outcome(result)}")}
"""


EXHIBITS = (
    Exhibit(
        name="niches",
        title="Niches",
        shows="Most optimizers look for the merge with the best mean. M2N2 keeps an archive of "
        "merges instead, whose members compete for every single document: who solves what few "
        "others solve stays, even if its mean is lower. Parents of the next merge are drawn "
        "from the archive, the second one for what the first cannot do.",
        keys=("optimizer",),
        figure="figure-items",
        alt="A row of stripes for each parent and each of the archive's twelve members, a stripe "
        "for each document, blue where it is solved. Of the parents, math solves nearly all "
        "of listops_en and lang all of translate_eo; every member solves most of all three "
        "tasks, and they differ in the hardest documents.",
        seen="Each row is a merge, each column a document. The parents are above, the archive "
        "below: its members differ in the hardest documents, at the right of each task.",
    ),
    Exhibit(
        name="front",
        title="A Pareto front",
        shows="With two weights for the whole model, one task can only gain where the other loses. "
        "There is then no best merge, but a front: the merges that no other beats on both "
        "tasks. NSGA-II searches for the whole front. `evomerge export --front` writes all of "
        "it.",
        keys=("space", "fitness", "optimizer"),
        figure="figure-front",
        alt="Points along a falling curve from translate_eo to listops_en. The parent lang is at "
        "one end, math at the other, the base far below the curve.",
        seen="The filled points are the front on `search`. The large one is the merge that the "
        "file prefers (`prefer: knee` is the default), here called the winner.",
    ),
    Exhibit(
        name="layer-swap",
        title="Layer swap",
        shows="Instead of mixing weights, the search says which model's layer stands where: layers "
        "of `lang` at the bottom and the top, layers of `math` between. It has four whole "
        "numbers to find: how many layers at each end, and how many are averaged between the "
        "two models.",
        keys=("space",),
        figure="figure-flow",
        alt="Five layers from input to output: the first two are from lang, the last three from "
        "math.",
        seen="The winner reads with the first two layers of `lang` and computes with the last "
        "three of `math`, which is just how these two models were trained.",
    ),
    Exhibit(
        name="lora",
        title="LoRA experts",
        shows="An expert may be a LoRA adapter. It is added to the base when it is read, and then "
        "it is an expert like any other: here each layer of each adapter has a weight of its "
        "own. The adapters are of rank 16 and were made from the quickstart's experts by "
        "`adapters.py`.",
        keys=("models",),
        figure="figure-coefficients-1",
        alt="A table of the winner's weights, a row for the embeddings, each layer, the final "
        "norm and the head, a column for each adapter.",
        seen="The picture has the weight of each adapter in each layer of the winner.",
    ),
    Exhibit(
        name="own-metric",
        title="A metric of your own",
        shows="A metric is a Python function that gets the model, the tokenizer and some "
        "documents, and returns a number for each document. `right_words` in "
        "`word_by_word.py` is a few lines long: it gives credit for each right word of an "
        "answer, where lm-eval's `acc` counts whole answers. Everything else works as with "
        "lm-eval's metrics: splits, intervals, tests.",
        keys=("fitness",),
        figure="figure-scores",
        alt="The winner's score with its interval, above every parent and every default "
        "merge, on the axis mean right_words.",
        seen="The scores are shares of words.",
    ),
    Exhibit(
        name="gradient",
        title="Begin with a gradient",
        shows="Before the first trial, 30 steps of gradient descent change all 16 weights at once. "
        "Each step looks at 30 documents, so that the whole descent costs about as much as "
        "seven trials. Where it ends is the first trial.",
        keys=("initial", "budget"),
        figure="figure-progress",
        alt="Scores by trial. The first trial is at .98 already, above every parent and default "
        "merge; the later trials lie around it.",
        seen="The first trial scores .98 on `search` already. [Begin with a "
        "gradient](how-to/gradients.md) says what a search without one needs for that.",
    ),
)


def filled(text: str) -> str:
    """Break a paragraph into lines."""
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def outcome(result: dict[str, Any]) -> str:
    """Say what came of a run, in a sentence; `result`: see `measured`."""
    if result["front"]:
        return f"The front has {result['front']} merges."
    winner, parent = result["winner"], result["parent"]
    return (
        f"The winner scores {short(winner['mean'])} [{short(winner['low'])}, "
        f"{short(winner['high'])}] on `test`, the best parent, `{parent['name']}`, "
        f"{short(parent['mean'])}."
    )


def measured(folder: Path) -> dict[str, Any]:
    """Return what came of a run: the test scores of winner and best parent, the front's members."""
    import evomerge

    best = evomerge.open_run(folder).best()
    test = {name: found["test"]["mean"] for name, found in best["parents"].items()}
    parent = max(test, key=lambda name: test[name])
    winner = {key: best["scores"]["test"][key] for key in ("mean", "low", "high")}
    return {
        "winner": winner,
        "parent": {"name": parent, "mean": test[parent]},
        "front": len(best.get("front") or []),
    }


def short(value: float) -> str:
    """Write a score as the reports do."""
    from evomerge.results.written_numbers import short

    return short(value)


def run(exhibit: Exhibit, folder: Path) -> Path:
    """Search, as the page's command does, or go on; returns the report's file."""
    import evomerge

    command = [sys.executable, "-m", "evomerge", "search", exhibit.file, "--out", folder]
    if not (folder.is_dir() and evomerge.open_run(folder).status()["done"]):
        subprocess.run(command, cwd=ROOT, check=True)
    return evomerge.open_run(folder).report()


@contextmanager
def browser() -> Iterator[Any]:
    """Open chromium without a window, in light colours."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{flag}")
        options.add_argument(f"--user-data-dir={profile}")
        driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
        look = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", look)
        size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1.5, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield driver
        finally:
            driver.quit()


def photograph(driver: Any, report: Path, figure: str, to: Path) -> None:
    """Save one figure of a report as a PNG.

    Raises:
        RuntimeError: it is not drawn within 30 seconds.
    """
    driver.get(report.resolve().as_uri())
    until = time.monotonic() + 30
    drawn = f"const f = document.getElementById('{figure}'); return !!(f && f._fullLayout)"
    while not driver.execute_script(drawn):
        if time.monotonic() > until:
            raise RuntimeError(f"{report}: no {figure}")
        time.sleep(0.1)
    wide = "for (const grid of document.querySelectorAll('.grid')) grid.style.display = 'block'; "
    redraw = "Plotly.Plots.resize(document.getElementById(arguments[0]))"
    driver.execute_script(wide + redraw, figure)
    time.sleep(1)
    to.parent.mkdir(exist_ok=True)
    to.write_bytes(driver.find_element("id", figure).screenshot_as_png)


def main() -> None:
    """Run every campaign, photograph its figure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, help="where runs are kept and gone on with")
    given = parser.parse_args()
    sections = []
    with tempfile.TemporaryDirectory() as scratch, browser() as driver:
        for exhibit in EXHIBITS:
            folder = (given.runs or Path(scratch)) / exhibit.name
            photograph(driver, run(exhibit, folder), exhibit.figure, exhibit.picture)
            sections.append(exhibit.section(measured(folder)))
    PAGE.write_text("\n".join([INTRODUCTION, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
