"""codi run, plan, merge: an experiment from its config to its report."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

import typer

from codi_tracing.cli.app import (
    EXIT_FAILED,
    ConfigFile,
    Force,
    Limit,
    OnNdif,
    OtherCheckpoint,
    Out,
    Shard,
    absolute,
    aligned,
    app,
    from_here,
    printable,
    report_and_print,
    stop,
)


@app.command()
def run(
    config: ConfigFile,
    out: Out = None,
    checkpoint: OtherCheckpoint = None,
    pairs: Annotated[Path | None, typer.Option(help="Replaces the config's file of pairs.")] = None,
    limit: Limit = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    remote: OnNdif = False,
    force: Force = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the run in the folder, and no other files, and start again.")
    ] = False,
    shard: Shard = None,
) -> None:
    """Run an experiment, or resume it, with its controls, and write the report.

    The config names the experiment: a sweep of patched runs (by default every layer at all latent steps, in both
    directions), or early_stop, influence, iterative, matched, original, attribution, shapley.
    """
    from codi_tracing.configs.load import load_config
    from codi_tracing.configs.schema import RunConfig

    paths = {"out": absolute(out), "checkpoint": checkpoint_folder(checkpoint), "pairs__file": absolute(pairs)}
    settings = load_config(
        config, RunConfig, **paths, pairs__limit=limit, device=device, dtype=dtype, remote=remote or None
    )
    part = None if shard is None else parse_shard(shard)
    from codi_tracing.patching.runs.experiment import InvariantError, run_experiment

    folder = settings.out or Path("runs", settings.name)
    if part is not None and out is None:
        folder = folder.with_name(f"{folder.name}.{part[0]}-of-{part[1]}")
    before = modified(folder / "manifest.json")
    try:
        run_experiment(settings, folder, force=force, fresh=fresh, shard=part)
    except InvariantError as error:
        stop(str(error), EXIT_FAILED)
    if before is not None and modified(folder / "manifest.json") == before:
        typer.echo(f"codi: {from_here(folder)} holds this run, finished; --fresh runs it again", err=True)
    if part is None:
        report_and_print(folder)
        if settings.tracking is not None:
            log_to_wandb(folder, **settings.tracking.model_dump())
    else:
        typer.echo(f"shard {shard} is in {from_here(folder)}; when all are finished: codi merge RUN… --out DIR")


@app.command()
def plan(
    config: ConfigFile,
    checkpoint: OtherCheckpoint = None,
    limit: Limit = None,
    shard: Shard = None,
    pairs: Annotated[int | None, typer.Option(help="Number of pairs, instead of the file's.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of a question, instead of the file's.")] = None,
    shape: Annotated[str | None, typer.Option(help="Sizes of a known model, e.g. llama-3.3-70b.")] = None,
    tflops: Annotated[float | None, typer.Option(help="TFLOP/s of your machine, to estimate seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Count the cost of a run before it runs: cells, forwards, FLOPs, memory, rows, NDIF jobs and bytes.

    Nothing is run. Typical values replace a missing checkpoint or file of pairs; every assumption is listed.
    """
    import json

    from codi_tracing.configs.load import load_config
    from codi_tracing.configs.schema import RunConfig

    settings = load_config(config, RunConfig, checkpoint=checkpoint_folder(checkpoint), pairs__limit=limit)
    part = None if shard is None else parse_shard(shard)
    for option, number in (("--pairs", pairs), ("--tokens", tokens)):
        if number is not None and not 1 <= number <= 1_000_000:
            raise ValueError(f"{option} is {number}, expected 1 to 1000000")
    if tflops is not None and not 0 < tflops < inf:
        raise ValueError(f"--tflops is {tflops:g}, expected a number above 0")
    from codi_tracing.patching.plan.count import plan_run
    from codi_tracing.patching.plan.inputs import load_inputs
    from codi_tracing.patching.plan.text import as_record, assumption_sentences, sweep_rows, total_rows

    counted = plan_run(settings, load_inputs(settings, pairs, tokens, shape), part)
    if as_json:
        typer.echo(json.dumps(as_record(counted, tflops), indent=2, ensure_ascii=False))
        return
    source = counted.inputs.size_source
    typer.echo(f"{settings.name}: the experiment {settings.experiment}, with the sizes of {source}\n")
    typer.echo(aligned(sweep_rows(counted)) + "\n")
    typer.echo(aligned(total_rows(counted, tflops)))
    typer.echo("\nAssumptions:")
    for sentence in assumption_sentences(counted):
        typer.echo(f"- {printable(sentence[0].upper() + sentence[1:])}.")


def log_to_wandb(folder: Path, wandb: str, project: str, name: str | None) -> None:
    """Send a finished run to Weights & Biases; a failure there is reported and leaves the run as it is."""
    from codi_tracing.analysis.report.wandb_log import track

    try:
        typer.echo(f"tracked ({wandb}) as {track(folder, wandb, project, name)}")
    except Exception as error:  # the client, the network or the service can raise anything
        reason = printable(from_here(error)) or type(error).__name__
        typer.echo(f"codi: tracking: {reason}; the run itself is complete", err=True)


def parse_shard(text: str) -> tuple[int, int]:
    """The two numbers of --shard."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count) <= 100_000):
        raise ValueError(f"--shard is {text!r}, expected i/n with i from 1 to n, e.g. 2/8")
    return int(first), int(count)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="All shards of one run, in any order.")],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
) -> None:
    """Join the shards that `codi run --shard` wrote, and report: the same table as of an undivided run.

    No model is needed. A shard of another run, a shard given twice and a missing one are refused.
    """
    from codi_tracing.analysis.io.run_folder import read_manifest
    from codi_tracing.patching.runs.assemble import merge_shards

    folder = merge_shards(runs, out)
    if read_manifest(folder).get("versions_of_shards"):
        typer.echo("codi: the shards ran under different versions; the report and manifest.json list them", err=True)
    report_and_print(folder)


def modified(path: Path) -> int | None:
    """Modification time of a file in nanoseconds; None where there is no file."""
    return path.stat().st_mtime_ns if path.is_file() else None


def checkpoint_folder(path: Path | None) -> Path | None:
    """The absolute path of a checkpoint given as a folder or by a shipped one's name."""
    if path is None:
        return None
    from codi_tracing.traces.model.checkpoint import find_checkpoint

    return find_checkpoint(path).resolve()
