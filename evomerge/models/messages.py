"""How the errors of this room name a model, and quote the library that refused it."""

from __future__ import annotations


def campaign_key(name: str) -> str:
    """Where the campaign file names this model: `models.base`, `models.experts.math`."""
    return "models.base" if name == "base" else f"models.experts.{name}"


def reason(error: Exception) -> str:
    """A library's message on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
