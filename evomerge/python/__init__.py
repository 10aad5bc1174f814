"""The Python interface: campaigns that are loaded, run and looked at, as the command line does it.

`import evomerge` gives `load_campaign`, `search`, `open_run` and `Run`; they are imported when they
are first used.
"""

from evomerge.python.run import Run, open_run
from evomerge.python.search import search

__all__ = ["Run", "open_run", "search"]
