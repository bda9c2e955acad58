"""codi run, plan, merge."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

import typer

from codi_tracing.cli.app import (
    FAILED,
    Config,
    OnNdif,
    Out,
    aligned,
    app,
    from_here,
    here,
    printable,
    report_and_print,
    stop,
)


@app.command()
def run(
    config: Config,
    out: Out = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Patch only the first so many usable pairs.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    remote: OnNdif = False,
    force: Annotated[bool, typer.Option("--force", help="Go on although an invariant failed.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run anew, replacing the run that the folder holds.")] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N slices, into a folder of its own.")
    ] = None,
) -> None:
    """Run an experiment, or go on with it where it was cut short, and report on it.

    The config names it: a sweep of patches (by default every layer at all latent steps, in both directions), or one of
    early_stop, influence, iterative, matched, original, attribution, shapley; the controls run beside it.
    """
    from codi_tracing.configs.load import load_config
    from codi_tracing.configs.schema import RunConfig

    paths = {"out": here(out), "checkpoint": here(checkpoint), "pairs__file": here(pairs)}
    settings = load_config(
        config, RunConfig, **paths, pairs__limit=limit, device=device, dtype=dtype, remote=remote or None
    )
    part = None if shard is None else slice_of(shard)
    from codi_tracing.patching.runs.experiment import InvariantError, run_experiment

    folder = settings.out or Path("runs", settings.name)
    if part is not None and out is None:
        folder = folder.with_name(f"{folder.name}.{part[0]}-of-{part[1]}")
    before = modified(folder / "manifest.json")
    try:
        run_experiment(settings, folder, force=force, fresh=fresh, part=part)
    except InvariantError as error:
        stop(str(error), FAILED)
    if before is not None and modified(folder / "manifest.json") == before:
        typer.echo(f"codi: {from_here(folder)} holds this very run, finished; --fresh runs it again", err=True)
    if part is None:
        report_and_print(folder)
        if settings.tracking is not None:
            tell_tracking(folder, **settings.tracking.model_dump())
    else:
        typer.echo(f"slice {shard} is in {from_here(folder)}; when all are there: codi merge RUN… --out DIR")


@app.command()
def plan(
    config: Config,
    checkpoint: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Patch only the first so many usable pairs.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only the I-th of N slices.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Count so many pairs, not the file's.")] = None,
    tokens: Annotated[int | None, typer.Option(help="A question's length, not the file's.")] = None,
    shape: Annotated[str | None, typer.Option(help="A model's sizes by name, as llama-3.3-70b.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Your machine's TFLOP/s, for seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Tell what a run will take, before it: cells, forwards, FLOPs, memory, rows, and NDIF's jobs and bytes.

    Nothing runs. What is not at hand, checkpoint or pairs, is stood in for, and every assumption is said.
    """
    import json

    from codi_tracing.configs.load import load_config
    from codi_tracing.configs.schema import RunConfig

    settings = load_config(config, RunConfig, checkpoint=here(checkpoint), pairs__limit=limit)
    part = None if shard is None else slice_of(shard)
    for option, number in (("--pairs", pairs), ("--tokens", tokens)):
        if number is not None and not 1 <= number <= 1_000_000:
            raise ValueError(f"{option} is {number}, wanted 1 to 1000000")
    if tflops is not None and not 0 < tflops < inf:
        raise ValueError(f"--tflops is {tflops:g}, wanted a number above 0")
    from codi_tracing.patching.plan.count import plan_run
    from codi_tracing.patching.plan.inputs import at_hand
    from codi_tracing.patching.plan.text import (
        as_record,
        assumptions,
        memory_rows,
        product_rows,
        remote_rows,
        sweep_rows,
        time_rows,
    )

    found = plan_run(settings, at_hand(settings, pairs, tokens, shape), part)
    if as_json:
        typer.echo(json.dumps(as_record(found, tflops), indent=2, ensure_ascii=False))
        return
    typer.echo(f"{settings.name}: the experiment {settings.experiment}, with the sizes of {found.known.named}\n")
    typer.echo(aligned(sweep_rows(found)) + "\n")
    typer.echo(aligned([*product_rows(found), *memory_rows(found), *remote_rows(found), *time_rows(found, tflops)]))
    typer.echo("\nAssumed, and left out:")
    for sentence in assumptions(found):
        typer.echo(f"- {printable(sentence[0].upper() + sentence[1:])}.")


def tell_tracking(folder: Path, wandb: str, project: str, name: str | None) -> None:
    """Track a finished run; whatever goes wrong there is said, and the run is as good as before."""
    from codi_tracing.analysis.report.wandb_log import track

    try:
        typer.echo(f"tracked ({wandb}) as {track(folder, wandb, project, name)}")
    except Exception as error:  # another's client, network and service
        said = printable(from_here(error)) or type(error).__name__
        typer.echo(f"codi: tracking: {said}; the run itself is whole", err=True)


def slice_of(text: str) -> tuple[int, int]:
    """The two numbers of --shard."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count) <= 100_000):
        raise ValueError(f"--shard is {text!r}, wanted i/n with i from 1 to n, as 2/8")
    return int(first), int(count)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="All slices of one run, in any order.")],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
) -> None:
    """Join the slices that `codi run --shard` wrote, and report: the very table of the run in one piece.

    No model is needed. Slices of other runs, slices named twice and missing ones are refused.
    """
    from codi_tracing.patching.runs.assemble import merge_slices

    folder = merge_slices(runs, out)
    report_and_print(folder)


def modified(path: Path) -> int | None:
    """When a file was last written; None where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None
