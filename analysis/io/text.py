"""Values as short text for error sentences and labels."""

from __future__ import annotations

import json
from typing import Any


def shorten(text: str, most: int = 80) -> str:
    """At most so many characters, the last an ellipsis where text is left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def short_json(value: Any, most: int = 80) -> str:
    """A JSON value as a file holds it, shortened; lone surrogates are replaced, so that it can be printed."""
    return shorten(json.dumps(value, ensure_ascii=False), most).encode(errors="replace").decode()
