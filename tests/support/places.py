"""Folders that the tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"  # published data sets; tests that read them are skipped where they are missing
ORIGINAL, GSM8K = SHARED / "gsm8k_pairs_66.json", SHARED / "gsm8k_test.jsonl"
EMBEDDED = ROOT / "traces" / "embedded"
