"""The version of evomerge."""

__version__ = "0.1.0"
