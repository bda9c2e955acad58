"""A patching experiment from a config to a run folder: load, check, run the recipe, save.

The default is the original experiment (the residual stream of each layer patched at all latent steps, on pairs of clean
and corrupted questions) in both directions, with the controls that it lacked: the four corners, the self-patch, an
unrelated donor, noise of equal norm, and on request the same with LoRA and projection reinitialised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from codi_tracing.analysis.io.atomic import write_json
from codi_tracing.analysis.io.run_folder import CHECKS, FORMAT, PREPARED
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.pair import load_hashed_pairs, write_pairs
from codi_tracing.patching.pairs.selection import Selection, select_pairs
from codi_tracing.patching.provenance import now, versions
from codi_tracing.patching.runs.assemble import finish
from codi_tracing.patching.runs.batch_files import BatchFiles
from codi_tracing.patching.runs.checks import findings, invariants
from codi_tracing.patching.runs.identity import identity
from codi_tracing.patching.runs.recipes import RunExecutor, check_shardable, run_recipe
from codi_tracing.patching.runs.run_folder import locked, open_run
from codi_tracing.traces.lora_merge import merge_lora
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi, reinitialise
from codi_tracing.traces.remote.responses import ask_json
from codi_tracing.traces.remote.session import LOCAL
from codi_tracing.traces.remote.submitted_jobs import JobsPending, Ledger


class InvariantError(RuntimeError):
    """An identity of every model failed, so the numbers would mean nothing."""


def run_experiment(
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    fresh: bool = False,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
    later: Literal["submit", "collect"] | None = None,
) -> Path:
    """Run the experiment, or resume it if `out` holds it unfinished, and return its folder.

    `force` goes on after a failed invariant, and under other package versions; `fresh` starts anew. `shard` (i, n)
    runs every n-th batch from the i-th, to be merged by `merge_shards`. With `later`, a deployment's jobs are
    submitted, or finished ones collected, without waiting; raises `JobsPending` if the run is then unfinished. Raises
    ValueError if the folder belongs to another run or process, or to this run of a model or pairs that changed since.
    """
    check_shardable(config, shard)
    with locked(out), determinism(config.deterministic):
        started = time.monotonic()
        pairs, pairs_hash = load_hashed_pairs(config.pairs.file)
        if config.remote is not None and config.remote.host != LOCAL:
            ask_json(config.remote, "/status")
        model = load_codi(config.checkpoint, config.device, config.dtype, config.remote)
        about = open_run(out, initial_manifest(config, model, pairs_hash, shard), fresh=fresh, force=force)
        if about is None:
            return out  # this very run is there, finished
        ledger = None
        if later is not None:
            assert config.remote is not None
            ledger = Ledger(out / "jobs.json", sending=later == "submit", patience=config.remote.timeout)
        files = BatchFiles(out, about["identity"], shard or (1, 1), config.max_failed)
        if ledger is not None:
            files.name_jobs = ledger.begin
        merged = None
        if config.merge_lora and config.remote is None:  # a deployment's model is shared: its LoRA stays apart
            model, merged = merge_lora(model, [pair.clean.question for pair in pairs[:16]])
        chosen = select_pairs(model, pairs, config, progress, files.cached)
        checks = checked(model, chosen, config, files, out, force)
        executor = RunExecutor(replace(model, ledger=ledger), chosen, config, files.next_sweep, progress)
        run_recipe(executor)
        if ledger is not None and ledger.pending:
            raise JobsPending(ledger.sentence())
        if config.reinitialised:
            # A reference for what the architecture alone does, and not a null hypothesis.
            blank, next_sweep = reinitialise(model, config.seed), partial(files.next_sweep, "_reinitialised")
            run_recipe(RunExecutor(blank, chosen, config, next_sweep, progress))
        write_json(out / CHECKS, checks)
        write_pairs([p.pair for p in chosen.ready], out / PREPARED)
        about |= {
            "data": {**about["data"], **data_of(config, chosen)},
            **executor.notes,
            "merge_lora": None if merged is None else merged._asdict(),
            "remote": None if config.remote is None else config.remote.model_dump(mode="json"),
            **({"set_aside": files.set_aside} if files.set_aside else {}),
            "seconds": round(time.monotonic() - started, 1),
        }
        return finish(out, about)


def initial_manifest(config: RunConfig, model: CodiModel, pairs: str, shard: tuple[int, int] | None) -> dict[str, Any]:
    """The manifest of a run that begins: config, model, versions, and the identity; `pairs` is their file's SHA-256."""
    settings, model_of = config.settings(), model.describe()
    gpu = {"gpu": torch.cuda.get_device_name(model.device)} if model.device.type == "cuda" else {}
    return {
        "format": FORMAT,
        "name": config.name,
        **identity(settings, model_of, pairs),
        "shard": None if shard is None else f"{shard[0]}/{shard[1]}",
        "created": now(),
        "experiment": config.experiment,
        "protocol": config.protocol,
        "config": {
            **settings,
            "checkpoint": config.checkpoint.name,
            "pairs": {"file": config.pairs.file.name, **settings["pairs"]},
        },
        "versions": {**versions(), **gpu},
        "model": model_of,
        "data": {"pairs_file": config.pairs.file.name, "sha256": pairs},
        "seeds": {"unrelated_donors": config.seed, "pairs": config.pairs.seed},
    }


def data_of(config: RunConfig, chosen: Selection) -> dict[str, Any]:
    """The manifest's counts of pairs, and those left out with reasons."""
    lone = [p.pair.pair_id for p, donors in zip(chosen.ready, chosen.donors, strict=True) if not donors]
    return {
        "filter": config.pairs.filter,
        **chosen.counts,
        "used": len(chosen.ready),
        "excluded": [{"pair_id": pair.pair_id, "reason": reason} for pair, reason in chosen.excluded],
        "without_unrelated_donor": lone,
    }


def checked(
    model: CodiModel, chosen: Selection, config: RunConfig, files: BatchFiles, out: Path, force: bool
) -> list[dict[str, Any]]:
    """The checks of a run, cached. Raises `InvariantError` if an invariant failed, unless `force`."""

    def run_checks() -> list[dict[str, Any]]:
        results = invariants(model, chosen.ready, chosen.donors)
        results += findings(model, chosen.ready, chosen.donors, config.low_ceiling)
        return [check._asdict() for check in results]

    checks = files.cached("checks", run_checks)
    failed = [check for check in checks if check["grade"] == "invariant" and not check["passed"]]
    if failed and not force:
        files.forget("checks")
        write_json(out / CHECKS, checks)
        raise InvariantError(f"{failed[0]['sentence']} The run stopped before the sweep; --force goes on regardless.")
    return checks


@contextmanager
def determinism(required: bool) -> Iterator[None]:
    """If required, only deterministic operations: on a GPU some are slower, and some raise."""
    before = torch.are_deterministic_algorithms_enabled()
    if required:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
