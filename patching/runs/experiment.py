"""A patching experiment from a config to a run folder: load, check, run the recipe, save.

By default the original experiment (patching each layer's residual at every latent step of CODI's thought, on clean
and corrupted pairs) in both directions, with the controls that it lacked: the four corners, the self-patch, an
unrelated donor, noise as long as what is written, and on request the same with LoRA and projection re-initialised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from codi_tracing.analysis.io.atomic import write_json
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.pair import load_pairs, write_pairs
from codi_tracing.patching.pairs.selection import Selection, select_pairs
from codi_tracing.patching.provenance import digest, file_digest, now, versions
from codi_tracing.patching.runs.assemble import finish
from codi_tracing.patching.runs.batch_files import Shards
from codi_tracing.patching.runs.checks import findings, invariants
from codi_tracing.patching.runs.recipes import check_slices, job, run_recipe
from codi_tracing.patching.runs.run_folder import locked, open_run
from codi_tracing.traces.lora_merge import merge_lora
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi, reinitialise
from codi_tracing.traces.remote.ndif import greet
from codi_tracing.traces.remote.session import LOCAL
from codi_tracing.traces.remote.submitted_jobs import Ledger, NotYet


class InvariantError(RuntimeError):
    """An identity that holds in every model did not hold, so the numbers would mean nothing."""


def run_experiment(
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    fresh: bool = False,
    part: tuple[int, int] | None = None,
    progress: bool = True,
    later: Literal["submit", "collect"] | None = None,
) -> Path:
    """Run the experiment, or go on with it where `out` holds it unfinished, and return its folder.

    With `later`, a deployment's jobs are submitted, or what is there of them collected, and nothing is waited for;
    raises `NotYet` where the run is not finished by that.

    `force` goes on after a failed invariant, `fresh` starts anew. `part` (i, n) computes the i-th of n slices, whole
    batches, to be joined by `merge_slices`. Raises ValueError where the folder is another run's or another process's.
    """
    check_slices(config, part)
    with locked(out), determinism(config.deterministic):
        started = time.monotonic()
        read = load_pairs(config.pairs.file)
        if config.remote is not None and config.remote.host != LOCAL:
            greet(config.remote)
        model = load_codi(config.checkpoint, config.device, config.dtype, config.remote)
        if (about := open_run(out, described(config, model, part), fresh)) is None:
            return out  # this very run is there, finished
        ledger = None
        if later is not None:
            assert config.remote is not None
            ledger = Ledger(out / "jobs.json", sending=later == "submit", patience=config.remote.timeout)
        shards = Shards(
            out, about["identity"], *(part or (1, 1)), max_failed=config.max_failed,
            begin=(lambda name: None) if ledger is None else ledger.begin,
        )  # fmt: skip
        merged = None
        if config.merge_lora and config.remote is None:  # a deployment's model is shared, and keeps LoRA apart
            model, merged = merge_lora(model, [pair.clean.question for pair in read[:16]])
        chosen = select_pairs(model, read, config, progress, shards.note)
        checks = checked(model, chosen, config, shards, out, force)

        about_run = job(replace(model, ledger=ledger), chosen, config, shards.stage, progress)
        run_recipe(about_run)
        if ledger is not None and ledger.pending:
            raise NotYet(ledger.sentence())
        if config.reinitialised:
            # A reference for what the architecture alone does, and not a null hypothesis.
            blank = reinitialise(model, config.seed)
            run_recipe(job(blank, chosen, config, lambda: shards.stage("_reinitialised"), progress))
        write_json(out / "checks.json", checks)
        write_pairs([p.pair for p in chosen.ready], out / "prepared_pairs.json")
        about |= {
            "data": data_of(config, chosen),
            **about_run.notes,
            "merge_lora": None if merged is None else merged._asdict(),
            "remote": None if config.remote is None else config.remote.model_dump(mode="json"),
            **({"set_aside": shards.set_aside} if shards.set_aside else {}),
            "seconds": round(time.monotonic() - started, 1),
        }
        return finish(out, about)


def described(config: RunConfig, model: CodiModel, part: tuple[int, int] | None) -> dict[str, Any]:
    """What a manifest says from the first moment: what is run on what, by which versions, and its identity."""
    settings, model_of = config.settings(), model.describe()
    pairs = file_digest(config.pairs.file)
    parts = {"config": settings, "model": model_of["sha256"], "pairs": pairs}
    return {
        "name": config.name,
        "identity": digest([settings, model_of["sha256"], pairs]),
        "identity_of": parts,
        "slice": None if part is None else f"{part[0]}/{part[1]}",
        "created": now(),
        "experiment": config.experiment,
        "protocol": config.protocol,
        "config": {
            **settings,
            "checkpoint": config.checkpoint.name,
            "pairs": {"file": config.pairs.file.name, **settings["pairs"]},
        },
        "versions": versions(),
        "model": model_of,
        "data": {"pairs_file": config.pairs.file.name, "sha256": pairs},
        "seeds": {"unrelated_donors": config.seed, "pairs": config.pairs.seed},
    }


def data_of(config: RunConfig, chosen: Selection) -> dict[str, Any]:
    """What the manifest says of the pairs: how many were read and used, which were left out and why."""
    lone = [p.pair.pair_id for p, donors in zip(chosen.ready, chosen.donors, strict=True) if not donors]
    return {
        "pairs_file": config.pairs.file.name,
        "sha256": file_digest(config.pairs.file),
        "filter": config.pairs.filter,
        **chosen.counts,
        "used": len(chosen.ready),
        "excluded": [{"pair_id": pair.pair_id, "reason": reason} for pair, reason in chosen.excluded],
        "without_unrelated_donor": lone,
    }


def checked(
    model: CodiModel, chosen: Selection, config: RunConfig, shards: Shards, out: Path, force: bool
) -> list[dict[str, Any]]:
    """The checks, computed once for a run. Raises `InvariantError` where an invariant failed, unless `force`."""

    def run_checks() -> list[dict[str, Any]]:
        found = invariants(model, chosen.ready, chosen.donors)
        found += findings(model, chosen.ready, chosen.donors, config.low_ceiling)
        return [check._asdict() for check in found]

    checks = shards.note("checks", run_checks)
    failed = [check for check in checks if check["grade"] == "invariant" and not check["passed"]]
    if failed and not force:
        shards.forget("checks")
        write_json(out / "checks.json", checks)
        raise InvariantError(f"{failed[0]['sentence']} The run stopped before the sweep; --force goes on regardless.")
    return checks


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Only operations that give the same bits every time, where wanted: on a GPU some are slower, and some raise."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
