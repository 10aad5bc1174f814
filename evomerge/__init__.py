"""evomerge finds model-merge recipes.

An optimizer proposes a genome; the space decodes it into a recipe; a worker materializes the
recipe from the models with merge methods and scores it, item by item; the judge turns items into
decisions; the study records the fact.
"""

__version__ = "0.1.0"
