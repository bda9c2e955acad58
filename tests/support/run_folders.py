"""Finished run folders with made-up tables."""

import json

import pandas as pd

from codi_tracing.analysis.io.run_folder import read_checks, read_manifest, read_prepared
from codi_tracing.analysis.io.table_file import write_table

SMALL_FILES = {"manifest.json": read_manifest, "checks.json": read_checks, "prepared_pairs.json": read_prepared}
ATTACK = "</script><script>alert('eggs')</script> & <b>how many?</b>"


def make_run(folder, table: pd.DataFrame, pairs: list[dict], **manifest):
    """Write a finished run folder: a table, its pairs, three checks and a manifest with these further entries."""
    folder.mkdir()
    write_table(table, folder / "cells.parquet")
    (folder / "prepared_pairs.json").write_text(json.dumps(pairs))
    checks = [
        {"name": "accuracy", "grade": "finding", "passed": False, "value": 0.4, "sentence": f"Only 40%. {ATTACK}"},
        {"name": "self_patch", "grade": "invariant", "passed": True, "value": 0.0, "sentence": "Nothing changes."},
        {"name": "interchange", "grade": "finding", "passed": None, "value": None, "sentence": "Not measured."},
    ]
    (folder / "checks.json").write_text(json.dumps(checks))
    excluded = [{"pair_id": i, "reason": f"pair {i}: both answers are 13"} for i in (7, 8)]
    about = {
        "name": "tiny",
        "finished": True,
        "protocol": "latent_loop",
        "model": {"checkpoint": ATTACK, "n_layers": 3, "n_latents": 6},
        "data": {"read": 5, "used": 3, "excluded": excluded},
    }
    (folder / "manifest.json").write_text(json.dumps(about | manifest))
    return folder


def prepared(pairs: int, start: int = 0) -> list[dict]:
    """Pairs as a run writes them to prepared_pairs.json, with whole numbers for ids."""
    sides = {"clean": ("12 eggs?", 18), "corrupted": ("11 eggs?", 13)}
    return [
        {"pair_id": i} | {key: {"question": q, "answer": a, "reasoning_steps": 2} for key, (q, a) in sides.items()}
        for i in range(start, start + pairs)
    ]
