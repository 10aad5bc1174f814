"""evomerge finds model-merge recipes.

An optimizer proposes a genome; the space decodes it into a recipe; a worker materializes the
recipe from the models with merge methods and scores it, item by item; the judge turns items into
decisions; the study records the fact.

    run = evomerge.search("campaign.yaml")   # or a mapping with the same keys
    run.best()
    run.trials()                             # a pandas frame
    run.report()
    run.export("out")

`load_campaign`, `search`, `open_run` and `Run` are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from evomerge.common.version import __version__

if TYPE_CHECKING:
    from evomerge.config.load import load_campaign
    from evomerge.python.run import Run, open_run
    from evomerge.python.search import search


__all__ = ["Run", "__version__", "load_campaign", "open_run", "search"]


def __getattr__(name: str) -> Any:
    """Import what is asked for by its public name."""
    import importlib

    if name == "load_campaign":
        return importlib.import_module("evomerge.config.load").load_campaign
    if name == "search":  # the room of that name; to call it is to run a campaign
        return importlib.import_module("evomerge.search")
    if name in ("Run", "open_run"):
        return getattr(importlib.import_module("evomerge.python.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
