"""The JSON schema of campaign files, by which editors complete and check them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter

from evomerge.common.plugins import options
from evomerge.config import CampaignConfig
from evomerge.explain.docstrings import read
from evomerge.explain.keys import sections
from evomerge.explain.plugins import REGISTRIES, plugin_topics

PLUGS = {
    "OptimizerConfig": "optimizers",
    "ObjectiveConfig": "objectives",
    "PathConfig": "paths",
    "EngineConfig": "engines",
    "TrackerConfig": "trackers",
}
"""Sections that name a plug-in, and its kind."""
BY_NAME = ("ObjectiveConfig", "PathConfig", "TrackerConfig")
"""Those that may be a name alone."""


def json_schema() -> dict[str, Any]:
    """Make the JSON schema (draft 2020-12) of a campaign file, with texts and plug-ins' options."""
    schema = CampaignConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["required"].remove("space")  # a campaign with stages has none
    definitions = schema["$defs"]
    for model in ("CallableConfig", "AgreementTaskConfig", "ComposeTaskConfig"):
        # they are named after function, expert or parts
        definitions[model]["required"].remove("task")
    # 1. texts and examples of the keys
    for section in sections():
        found = definitions.get(section.model.__name__, schema)
        if section.name:
            found["description"] = read(section.model).text
        for key, _, told in section.fields():
            about = found["properties"][key]
            about["description"] = " ".join(told.text.split())
            if key in told.example:
                about["examples"] = [told.example[key]]
    # 2. methods by name, one or several
    method = definitions["WeightsConfig"]["properties"]["method"]
    names = _names("methods")
    method["anyOf"] = [names, {"type": "array", "items": names, "minItems": 1}]
    # 3. plug-ins by name, each with its options
    for name, kind in PLUGS.items():
        own = definitions[name]
        own["properties"]["kind"].pop("type", None)
        own["properties"]["kind"] |= _names(kind, *(["none"] if kind == "paths" else []))
        about = {topic.name: topic.text for topic in plugin_topics(kind).values()}
        own["allOf"] = [_options(*named, about) for named in REGISTRIES[kind].all().items()]
        if name in BY_NAME:
            definitions[name] = {"anyOf": [own["properties"]["kind"], own]}
    return schema


def _names(kind: str, *more: str) -> dict[str, Any]:
    """A plug-in's name: a known one, or another's as `module:Name`."""
    return {"anyOf": [{"enum": [*more, *REGISTRIES[kind].all()]}, {"pattern": ":"}]}


def _options(name: str, plug: Callable[..., Any], about: Mapping[str, str]) -> dict[str, Any]:
    """Where `kind` is the plug-in's name, the other keys are its options.

    Args:
        about: name of a topic → its text.
    """
    properties = {}
    for option, parameter in options(getattr(plug, "function", plug)).items():
        own = TypeAdapter(parameter.annotation).json_schema(ref_template="#/$defs/{model}")
        if "$defs" in own:
            own = {}  # a section of its own, which evomerge checks
        text = about.get(f"{name}.{option}")
        properties[option] = {**own, **({"description": text} if text else {})}
    return {
        "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
        "then": {"properties": properties},
    }
