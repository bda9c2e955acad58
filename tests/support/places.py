"""Folders that the tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"  # published data sets; tests that read them are skipped where they are missing
EMBEDDED = ROOT / "traces" / "embedded"
