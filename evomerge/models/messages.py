"""Name models in error messages, and quote the libraries that refused them."""

from __future__ import annotations


def campaign_key(name: str) -> str:
    """Return the campaign file's key of a model: `models.base`, `models.experts.math`."""
    return "models.base" if name == "base" else f"models.experts.{name}"


def reason(error: Exception) -> str:
    """Shorten a library's message to one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
