"""Archives: what a search keeps of what it has seen, and whom it lets breed.

An archive knows scores only. It hands out slots; who sits in a slot (a genome, a row of weights)
is kept by its owner.
"""

from evomerge.search.archives.grid import GridArchive
from evomerge.search.archives.items import ItemColumns
from evomerge.search.archives.niches import NicheArchive

__all__ = ["GridArchive", "ItemColumns", "NicheArchive"]
