"""Preference pairs of Anthropic's hh-rlhf as two choices after one prompt."""

_TURN = "\n\nAssistant:"


def process_docs(dataset):
    """Split the last answers off, and keep pairs that differ in them alone."""
    split = dataset.map(_split, remove_columns=dataset.column_names)
    return split.filter(lambda doc: doc["comparable"])


def _split(doc):
    prompt, _, better = doc["chosen"].rpartition(_TURN)
    other, _, worse = doc["rejected"].rpartition(_TURN)
    better, worse = better.strip(), worse.strip()
    comparable = bool(prompt == other and better and worse and better != worse)
    return {
        "prompt": prompt.strip() + _TURN,
        "choices": [better, worse],
        "comparable": comparable,
    }
