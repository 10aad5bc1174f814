"""What tests of the study share: opening it, evaluations to record, a driver in its own process."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from evomerge.common.errors import InputError
from evomerge.study.record import Evaluation
from evomerge.study.study import Study

IDENTITY = {
    "models": {"base": "d0", "experts": {"math": "d1"}},
    "optimizer": {"kind": "cma"},
    "seed": 0,
    "versions": {"lm_eval": "0.4.13"},
}
SERVERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("postgresql", "mysql")]
on_every_database = pytest.mark.parametrize("url", ["sqlite", *SERVERS], indirect=True)
GENES = {"weight": FloatDistribution(0.0, 1.5), "density": FloatDistribution(0.01, 1.0, log=True)}


def open_study(url, **changes):
    options = {"identity": IDENTITY, "campaign": {"name": "c"}, "genes": GENES} | changes
    return Study.create_or_resume(url, "c", **options)


def scored(value, digest="d", **changes):
    facts = {"split": "search", "digest": digest, "recipe": {"seed": 1}, "value": value}
    facts |= {"scores": {"t": np.ones(3)}, "n": 3}
    if changes.get("role", "search") == "search":
        facts |= {"params": {"weight": 0.5, "density": 0.25}, "genome": np.zeros(2), "ask": 0}
    return Evaluation(**facts | changes)


def driver(body, url, *arguments, **options):
    """A second process with these helpers and `url` in scope."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    head += "import time\nfrom drivers import *\nurl, arguments = sys.argv[1], sys.argv[2:]\n"
    command = [sys.executable, "-c", head + textwrap.dedent(body), url, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def refusal(url, **changes):
    with pytest.raises(InputError) as caught:
        open_study(url, **changes)
    return str(caught.value)
