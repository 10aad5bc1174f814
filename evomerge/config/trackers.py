"""`trackers` and `notify`: services and commands that are told of the campaign."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evomerge.config.base import NamedConfig, Strict


class TrackerConfig(NamedConfig):
    """A tracker (`evomerge list trackers`), or a class of yours as `module:Class`."""


class NotifyConfig(Strict):
    """A message to a `webhook` or a `command`, one of them in each entry."""

    when: list[Literal["finish", "failure", "best"]] = Field(
        default=["finish", "failure"], min_length=1
    )
    """The events to tell of. `finish`: the campaign is done; `failure`: it ended in an error;
    `best`: the search has a new best trial.

    Example: `when: [finish, best], command: notify-send`
    """
    webhook: str | None = Field(default=None, pattern="^https?://")
    """An address that gets a POST with JSON.

    Example: `webhook: 'https://example.org/hook'`
    """
    command: str | list[str] | None = Field(default=None, min_length=1)
    """A command that gets JSON on its standard input.

    Example: `command: notify-send`
    """

    @model_validator(mode="after")
    def _has_one_way(self) -> NotifyConfig:
        if (self.webhook is None) == (self.command is None):
            raise ValueError("give webhook or command, one of them in each entry")
        return self
