"""codi check, ask, eval, convert, train: one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan
from pathlib import Path
from typing import Annotated, Any

import typer

from codi_tracing.cli.app import (
    EXIT_FAILED,
    SHIPPED_PAIRS,
    Checkpoint,
    ConfigFile,
    Device,
    Dtype,
    Fresh,
    OnNdif,
    Out,
    absolute,
    aligned,
    app,
    from_here,
    print_left_out,
    stop,
    typeable,
    writable,
    write_lines,
)


@app.command()
def check(
    checkpoint: Checkpoint,
    pairs: Annotated[Path, typer.Option(help="A file of pairs.", show_default="the shipped pairs")] = SHIPPED_PAIRS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Check the invariants that hold in every model, and report findings about this one.

    Where an invariant fails, the exit code is 1.
    """
    from codi_tracing.patching.pairs.pair import load_pairs
    from codi_tracing.patching.pairs.validity import split_usable

    usable, excluded = split_usable(load_pairs(pairs))
    from codi_tracing.analysis.report.conclusions import mark
    from codi_tracing.patching.runs.checks import check_checkpoint
    from codi_tracing.traces.model.loading import load_codi

    checks = [item._asdict() for item in check_checkpoint(load_codi(checkpoint, device, dtype, remote), usable)]
    for _, reason in excluded:
        typer.echo(f"excluded: {reason}")
    typer.echo(aligned([mark(item), item["name"], item["sentence"]] for item in checks))
    if failed := [item["name"] for item in checks if mark(item) == "FAILED"]:
        stop(f"{', '.join(failed)}: holds in every model, so no number from this one can be trusted", EXIT_FAILED)


@app.command("eval")
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option(help="Questions and answers: JSONL as GSM8K's, a JSON list, CSV.")],
    steps: Annotated[list[int] | None, typer.Option(min=0, help="Number of latent steps; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first LIMIT questions.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions per forward.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Write every answer to this file, JSONL.")] = None,
    fresh: Fresh = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Measure greedy accuracy with the whole thought and with 0, 1, … of its latent steps.

    The answer is the last number in the generated text; the interval is Clopper and Pearson's.
    """
    from codi_tracing.traces.gsm8k import read_problems

    read = read_problems(data)
    problems = read.problems[:limit]
    if out is not None and (out.suffix != ".jsonl" or out.resolve() == data.resolve()):
        raise ValueError(f"{out}: expected another file than the data's, with a name that ends in .jsonl")
    if out is not None:
        writable(fresh, out)
    from codi_tracing.analysis.statistics.inference import share_intervals
    from codi_tracing.traces.evaluate import score
    from codi_tracing.traces.model.loading import load_codi

    model = load_codi(checkpoint, device, dtype, remote)
    chosen = [*range(model.n_latents + 1)] if steps is None else sorted(set(steps))
    rows: list[list[str]] = []
    scored: list[Any] = []
    for count in reversed(chosen):  # the whole thought first: its accuracy is the one of interest
        new = score(model, problems, count, batch_size=batch, max_new_tokens=max_new_tokens, progress=True)
        scored += new
        if out is not None:  # after each count, so that an interruption loses no finished count
            write_lines(out, (item._asdict() for item in scored))
        right = sum(item.correct for item in new)
        low, high = share_intervals(right / len(new), len(new))
        trained = "as trained" if count == model.n_latents else ""
        rows.insert(
            0, [str(count), f"{right / len(new):.1%}", f"[{low:.1%}, {high:.1%}]", f"{right}/{len(new)}", trained]
        )
    print_left_out(read.left_out)
    typer.echo(aligned([["steps", "accuracy", "95 % interval", "correct", ""], *rows]))


@app.command()
def train(
    config: ConfigFile,
    out: Out = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what was trained before in the folder.")] = False,
) -> None:
    """Train a base, or a CODI model over a base. The shipped checkpoints were trained with it.

    The checkpoint's codi.json records the recipe of the config, and how many steps were made.
    """
    from codi_tracing.configs.load import load_config
    from codi_tracing.configs.train_schema import TrainConfig

    settings = load_config(config, TrainConfig, out=absolute(out))
    if settings.base is not None and not (settings.base / "config.json").is_file():
        raise ValueError(f"{settings.base}: holds no base model; train it first: codi train train_base")
    from codi_tracing.patching.runs.lock import lock_folder
    from codi_tracing.traces.training.train import DivergedError, train

    def say(step: int, figures: dict) -> None:
        typer.echo(f"step {step:>6}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(settings.out, keep=False):
            train(settings, say, fresh)
    except DivergedError as error:
        stop(str(error), EXIT_FAILED)
    typer.echo(f"written to {from_here(settings.out)}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Upstream's output: a folder, a file or a Hub id.")],
    base: Annotated[str, typer.Option(help="The base it was trained over: a folder or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The checkpoint folder to write.")],
    alpha: Annotated[float | None, typer.Option(help="LoRA's alpha; 32 in the published checkpoints.")] = None,
    keep_base: Annotated[bool, typer.Option("--keep-base", help="Store the file's base if it differs.")] = False,
    latents: Annotated[int, typer.Option(min=1, help="Latent steps it was trained with.")] = 6,
    keep_eos: Annotated[bool, typer.Option("--keep-eos", help="Trained without upstream's remove_eos.")] = False,
) -> None:
    """Convert upstream CODI's weights into a checkpoint folder.

    Every tensor is used, equal to the base's, or refused; rank, targets and projection are read off the tensors.
    """
    if alpha is not None and not 0 < alpha < inf:
        raise ValueError(f"--alpha is {alpha:g}, expected a number above 0")
    from codi_tracing.traces.convert.convert import convert
    from codi_tracing.traces.convert.upstream import ConversionError

    try:
        report = convert(
            source, base, out, alpha=alpha, keep_base=keep_base, n_latents=latents, remove_eos=not keep_eos
        )
    except ConversionError as error:
        print_parts(error.report)
        raise
    print_parts(report)
    typer.echo(f"written to {from_here(out)}; look at it with: codi check {typeable(out)} --pairs FILE")


@app.command()
def ask(
    checkpoint: Checkpoint,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Answer a question, and show each latent step's nearest tokens."""
    if not question.strip():
        raise ValueError("the question is empty; put one in quotes")
    from codi_tracing.patching.pairs.pair import format_number
    from codi_tracing.traces.lens import ask
    from codi_tracing.traces.model.loading import load_codi

    asked = ask(load_codi(checkpoint, device, dtype, remote), question)
    number = "none" if isnan(asked.answer) else format_number(asked.answer)
    typer.echo(f"answer  {number}  (the model said: {asked.answer_text.strip()!r})\n")
    typer.echo(
        aligned([["step", "nearest tokens"], *([str(i), "  ".join(near)] for i, near in enumerate(asked.steps))])
    )


def print_parts(report: Sequence[Any]) -> None:
    """What became of a converted file's tensors, part by part."""
    if report:
        heads = ["tensors", "expected", "landed", "missing", "unexpected"]
        typer.echo(aligned([heads, *([part.part, *map(str, part[1:])] for part in report)]))
