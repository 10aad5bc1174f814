"""Words for whatever a campaign file may hold: its keys, the plug-ins with their options, terms.

The texts are the schema's and the plug-ins' own docstrings, read by `docstrings`; those of merge
methods' parameters and of the terms lie in `parameters.yaml` and `glossary.yaml`. `evomerge
explain`, the reference pages of the docs and the JSON schema are made of the same topics.
"""

from evomerge.explain.json_schema import json_schema
from evomerge.explain.plugins import REGISTRIES
from evomerge.explain.topic import Topic
from evomerge.explain.topics import find_topics, topics

__all__ = ["REGISTRIES", "Topic", "find_topics", "json_schema", "topics"]
