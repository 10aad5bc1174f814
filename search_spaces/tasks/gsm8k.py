"""GSM8K, a part of it."""


def first_thousand(dataset):
    """Enough for a search; requests are built for all documents of a task."""
    return dataset.select(range(1000))
