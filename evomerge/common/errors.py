"""The errors evomerge raises on purpose, and what each means to the person who ran it."""

from __future__ import annotations


class EvomergeError(Exception):
    """Base of every error that is evomerge's own; its text is meant for the user."""


class InputError(EvomergeError):
    """The user's input cannot work: names the file, the key and the way out. Exit code 2."""


class StoppedError(EvomergeError):
    """The run stopped for a reason that is no candidate's; once mended, it goes on. Exit code 3."""


class ModelNotFoundError(InputError):
    """A model is neither a folder nor to be had from the hub."""


class CandidateError(EvomergeError):
    """One candidate cannot be materialized or scored; the campaign records it and goes on."""


class NonFiniteError(CandidateError):
    """A merged tensor holds NaN or infinity; the text names the tensor."""
