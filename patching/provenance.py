"""Provenance for manifests: time, package versions, SHA-256 digests."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

COMPUTING = ("codi-tracing", "nnsight", "torch", "transformers", "peft", "numpy")  # whose versions can change numbers
PACKAGES = (*COMPUTING, "pandas", "altair")


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute, and of those that keep and draw the results."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
