"""codi remote check, submit, collect: a run on an NDIF deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from codi_tracing.cli.app import (
    EXIT_FAILED,
    ConfigFile,
    Force,
    Out,
    absolute,
    from_here,
    printable,
    report_and_print,
    stop,
    typeable,
)

remote_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="An NDIF deployment: check it, or submit a run's jobs and collect them later. NDIF_API_KEY holds the key.",
)  # fmt: skip


@remote_app.command("check")
def check_remote(config: ConfigFile) -> None:
    """Check with a job or two that the config's deployment computes what this machine would.

    The exit code is 1 where an invariant fails: the adapter is not applied, the weights differ, or a self-patch changes
    a run.
    """
    from codi_tracing.configs.load import load_config
    from codi_tracing.configs.schema import RunConfig

    settings = load_config(config, RunConfig, remote=True)
    assert settings.remote is not None
    if settings.remote.host == "local":
        raise ValueError(f'{config}: remote is "local", which is this machine; expected a deployment\'s host')
    from codi_tracing.analysis.report.conclusions import mark
    from codi_tracing.patching.pairs.pair import load_pairs
    from codi_tracing.patching.pairs.validity import split_usable
    from codi_tracing.patching.runs.ndif_check import preflight

    usable, _ = split_usable(load_pairs(settings.pairs.file))
    failed = []
    for check in preflight(settings.checkpoint, settings.remote, usable, settings.dtype):
        item = check._asdict()
        typer.echo(f"{mark(item):<7} {item['name']:<11} {printable(item['sentence'])}")
        failed += [item["name"]] if mark(item) == "FAILED" else []
    if failed:
        stop(f"{', '.join(failed)}: no number from this deployment can be trusted", EXIT_FAILED)


@remote_app.command("submit")
def submit_remote(config: ConfigFile, out: Out = None, force: Force = False) -> None:
    """Submit a run's jobs and return; `codi remote collect` fetches their results.

    The checks before the sweep are waited for. Given again, it submits the jobs that failed, and those without a result
    after remote.timeout seconds.
    """
    submit_or_collect(config, out, "submit", force)


@remote_app.command("collect")
def collect_remote(config: ConfigFile, out: Out = None, force: Force = False) -> None:
    """Fetch the finished jobs of a submitted run; when all are finished, write the report."""
    submit_or_collect(config, out, "collect", force)


def submit_or_collect(config: Path, out: Path | None, step: Any, force: bool) -> None:
    """Submit or collect a run's jobs; write the report once the run is finished."""
    from codi_tracing.configs.load import load_config
    from codi_tracing.configs.schema import RunConfig

    settings = load_config(config, RunConfig, out=absolute(out), remote=True)
    if settings.remote is None or settings.remote.host == "local":
        raise ValueError(f"{config}: remote is not a deployment; set remote = true, or the table [remote]")
    from codi_tracing.patching.runs.experiment import InvariantError, run_experiment
    from codi_tracing.traces.remote.submitted_jobs import JobsPending

    folder = settings.out or Path("runs", settings.name)
    words = typeable(config) + (f" --out {typeable(out)}" if out is not None else "")
    if step == "collect" and not (folder / "jobs.json").is_file():
        raise ValueError(f"{folder}: no jobs were submitted for this run; codi remote submit {words}")
    try:
        run_experiment(settings, folder, later=step, force=force)
    except InvariantError as error:
        stop(str(error), EXIT_FAILED)
    except JobsPending as state:
        typer.echo(f"{from_here(folder)}: {state} {words}")
        return
    report_and_print(folder)
