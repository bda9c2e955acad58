"""A patching experiment from a config to a run folder: load, check, run the recipe, save.

By default the original experiment (patching each layer's residual at every latent step of CODI's thought, on clean
and corrupted pairs) in both directions, with the controls that it lacked: the four corners, the self-patch, an
unrelated donor, noise as long as what is written, and on request the same with LoRA and projection re-initialised.
"""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from analysis.table import write_table
from configs.schema import RunConfig
from patching.checks import Check, findings, invariants
from patching.pairs import load_pairs, write_prepared
from patching.recipes import job, run_recipe
from patching.selection import select
from patching.store import MANIFEST, digest, file_digest, open_run, write_json
from traces.model import load_codi, reinitialise

PACKAGES = ("nnsight", "torch", "transformers", "peft", "pandas", "altair", "numpy")


class InvariantError(RuntimeError):
    """An identity that holds in every model did not hold, so the numbers would mean nothing."""


def run_experiment(
    config: RunConfig, out: Path, *, force: bool = False, fresh: bool = False, progress: bool = True
) -> Path:
    """Run the experiment, return its folder; `force` goes on after a failed invariant, `fresh` starts anew."""
    started = time.monotonic()
    read = load_pairs(config.pairs.file)
    model = load_codi(config.checkpoint, config.device, config.dtype)
    chosen = select(model, read, config, progress)
    ready, donors = chosen.ready, chosen.donors

    settings = config.settings()
    about, data = model.describe(), file_digest(config.pairs.file)
    identity = digest([settings, about["sha256"], data])
    if not open_run(out, identity, fresh):
        return out  # this very run is there, finished

    checks: list[Check] = [*invariants(model, ready, donors), *findings(model, ready, donors, config.low_ceiling)]
    write_json(out / "checks.json", [check._asdict() for check in checks])
    failed = [check for check in checks if check.grade == "invariant" and not check.passed]
    if failed and not force:
        raise InvariantError(f"{failed[0].sentence} The run stopped before the sweep; --force goes on regardless.")

    about_run = job(model, chosen, config, progress)
    table = run_recipe(about_run)
    if config.reinitialised:
        blank = run_recipe(job(reinitialise(model, config.seed), chosen, config, progress))
        # A reference for what the architecture alone does, and not a null hypothesis.
        table = pd.concat([table, blank.assign(protocol=blank["protocol"] + "_reinitialised")], ignore_index=True)
    write_table(table, out / "cells.parquet")
    write_prepared([p.pair for p in ready], out / "prepared_pairs.json")
    write_json(
        out / MANIFEST,
        {
            "name": config.name,
            "identity": identity,
            "finished": True,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "experiment": config.experiment,
            "protocol": config.protocol,
            "config": {
                **settings,
                "checkpoint": config.checkpoint.name,
                "pairs": {"file": config.pairs.file.name, **settings["pairs"]},
            },
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "model": about,
            "data": {
                "pairs_file": config.pairs.file.name,
                "sha256": data,
                "filter": config.pairs.filter,
                **chosen.counts,
                "used": len(ready),
                "excluded": [{"pair_id": pair.pair_id, "reason": reason} for pair, reason in chosen.excluded],
                "without_unrelated_donor": [p.pair.pair_id for p, d in zip(ready, donors, strict=True) if not d],
            },
            "seeds": {"unrelated_donors": config.seed, "pairs": config.pairs.seed},
            "cells_per_pair": cells_per_pair(table),
            **about_run.notes,
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    return out


def cells_per_pair(table: pd.DataFrame) -> int:
    """The most rows of one metric that a pair has."""
    return int(table.groupby(["pair_id", "metric"], sort=False).size().max())
