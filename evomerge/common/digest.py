"""Canonical JSON and content digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Write JSON with sorted keys, no spaces and no NaN, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_digest(value: Any) -> str:
    """Return the first 16 bytes of SHA-256 over `canonical_json(value)`, as 32 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]
