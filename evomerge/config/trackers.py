"""`trackers` and `notify`: services and commands that are told of the campaign."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evomerge.config.base import NamedConfig, Strict


class TrackerConfig(NamedConfig):
    """A tracker (`evomerge list trackers`), or a class of yours as `module:Class`."""


class NotifyConfig(Strict):
    """A message to a `webhook` (POST, JSON) or a `command` (JSON on its standard input).

    `finish`: the campaign is done; `failure`: it ended in an error; `best`: the search has a new
    best trial.
    """

    when: list[Literal["finish", "failure", "best"]] = Field(
        default=["finish", "failure"], min_length=1
    )
    webhook: str | None = Field(default=None, pattern="^https?://")
    command: str | list[str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _has_one_way(self) -> NotifyConfig:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("give webhook or command, one of them in each entry")
        return self
