"""The regular expressions in an adapter's config, tried where they cannot hang this process.

PEFT matches them against the name of every module; one with nested repetitions may take years for a single name.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from codi_tracing.traces.model.checkpoint import CheckpointError

PATTERN_KEYS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
SECONDS = 10
TRIED = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in (pattern, rf"(.*\\.)?({pattern})$", rf"(?:^|.*?\\.){pattern}\\.(?P<idx>\\d+)\\."):
        try:
            tried = re.compile(form)
        except (re.error, RecursionError, OverflowError):
            continue  # PEFT refuses it with the cause
        for name in names:
            tried.match(name), tried.fullmatch(name)
"""


def patterns_in(config: Mapping[str, Any]) -> list[str]:
    """The texts of an adapter's config that PEFT reads as regular expressions, without those that are plain names."""
    found = []
    for key in PATTERN_KEYS:
        value = config.get(key)
        listed = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else []
        found += [
            text for text in listed if isinstance(text, str) and not text.replace("_", "").replace(".", "").isalnum()
        ]
    return found


def check_patterns(path: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse an adapter's config whose patterns take more than `SECONDS` over a base's module names."""
    if not (patterns := patterns_in(config)):
        return
    command = [sys.executable, "-I", "-S", "-c", TRIED]
    asked = json.dumps([patterns, list(names)])
    try:
        subprocess.run(command, input=asked, text=True, timeout=SECONDS, capture_output=True)
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{path}: matching {', '.join(key for key in PATTERN_KEYS if config.get(key))} takes more than {SECONDS} "
            "seconds; list the modules by name"
        ) from None
