"""The front door: the `codi` command. Thin; what is heavy is imported inside the commands, so that --help is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    import pandas as pd

    from patching.checks import Check

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes
SHIPPED_PAIRS = Path(__file__).parent / "patching" / "data" / "arithmetic_pairs.json"


class FrontDoor(TyperGroup):
    """Turns every bad input into one line on stderr and exit code 2. Anything else that is raised is a bug of ours."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stop("interrupted; what was not finished can be run again", INTERRUPTED)
        except BrokenPipeError:
            raise
        except OSError as error:
            stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), BAD_INPUT)
        except ValueError as error:
            stop(str(error), BAD_INPUT)


def stop(sentence: str, code: int) -> None:
    """Say why on stderr, in one line, and leave with `code`."""
    typer.echo(f"codi: {' '.join(from_here(sentence).split())}", err=True)
    raise typer.Exit(code)


def from_here(text: object) -> str:
    """The same text, paths under the current folder relative to it."""
    return str(text).replace(f"{Path.cwd()}{os.sep}", "")


app = typer.Typer(
    cls=FrontDoor,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Causal tracing of latent chain of thought: run a CODI model's latent steps, exchange what happens there between "
    "a clean and a corrupted question, and see whether the answer follows.",
    epilog="""\b
Start here:
  codi ask traces/embedded/thought "On Sunday Ann had 7 pens. On Monday Ann bought 5 pens. How many pens does Ann have now?"
  codi check traces/embedded/bypass      identities that must hold, and what the model turns out to be
  codi run configs/tiny.toml             the layer-wise experiment on the shipped model and pairs
  codi report runs/tiny                  draw its figures and report again

\b
Your own data and model:
  codi pairs check my_pairs.json
  codi run configs/tiny.toml --checkpoint my_model --pairs my_pairs.json --limit 8 --out runs/mine

Paths on the command line are relative to the current folder, those in a config to that file.
Exit codes: 0 done, 1 an invariant failed, 2 bad input.""",
)
pairs_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check a file of clean/corrupted pairs, or make the shipped one."
)
app.add_typer(pairs_app, name="pairs")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; configs/README.md lists every key.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A CODI checkpoint folder, with codi.json.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
Out = Annotated[Path | None, typer.Option(help="Where to write, instead of the config's `out`.")]


@app.command()
def run(
    config: Config,
    out: Out = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Patch only the first so many usable pairs.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on although an invariant failed.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run folder that holds another run.")] = False,
) -> None:
    """Patch every layer of the thought, pair by pair, and report which of it carries the answer."""
    from configs import RunConfig, load_config

    settings = load_config(
        config, RunConfig, out=here(out), checkpoint=here(checkpoint), pairs=here(pairs), limit=limit, device=device,
        dtype=dtype,
    )  # fmt: skip
    from analysis import write_report
    from patching.experiment import InvariantError, run_experiment

    try:
        folder = run_experiment(
            settings, settings.out or Path("runs", settings.name).resolve(), force=force, fresh=fresh
        )
    except InvariantError as error:
        return stop(str(error), FAILED)
    print_conclusions(folder, write_report(folder, progress=pair_bar))


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `codi run` leaves it.")]) -> None:
    """Draw a run's figures and write its report again, from its table; needs no model."""
    from analysis import write_report

    print_conclusions(run, write_report(run, progress=pair_bar))


@app.command()
def check(
    checkpoint: Checkpoint,
    pairs: Annotated[Path, typer.Option(help="Pairs to check with.", show_default="the shipped ones")] = SHIPPED_PAIRS,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Check a model: identities that hold in every model (exit code 1 if not), and findings about this one."""
    from patching.pairs import load_pairs, split_usable

    usable, excluded = split_usable(load_pairs(pairs))
    from patching.checks import check_checkpoint
    from traces import load_codi

    checks = check_checkpoint(load_codi(checkpoint, device, dtype), usable)
    for _, reason in excluded:
        typer.echo(f"excluded: {reason}")
    typer.echo(aligned([mark(item.grade, item.passed), item.name, item.sentence] for item in checks))
    if broken := failed_invariants(checks):
        stop(f"{len(broken)} invariant(s) failed, so no number from this model can be trusted", FAILED)


@pairs_app.command("check")
def check_pairs(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON list with two records a pair.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole description as JSON.")] = False,
) -> None:
    """Describe a file of pairs and name all of its problems at once, before any compute is spent."""
    import json

    from patching.pairs import PairsError, describe, load_pairs

    try:
        found = describe(load_pairs(file))
    except PairsError as error:
        found = {"problems": list(error.problems)}
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif "pairs" in found:
        typer.echo(aligned(pair_lines(found)))
    for problem in found["problems"]:
        typer.echo(f"codi: {from_here(file)}: {problem}", err=True)
    if found["problems"]:
        raise typer.Exit(BAD_INPUT)


@pairs_app.command("arithmetic")
def arithmetic_pairs(
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    checkpoint: Annotated[list[Path], typer.Option(help="Must answer both sides correctly; may be given repeatedly.")],
    seed: Annotated[int, typer.Option(help="Draws the problems.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 66,
) -> None:
    """Make pairs of arithmetic word problems that every CHECKPOINT answers correctly: how the shipped file was made."""
    from patching.arithmetic import make_pairs

    out.parent.mkdir(parents=True, exist_ok=True)
    make_pairs(checkpoint, count, seed, out)
    typer.echo(f"{count} pairs in {out}")


@app.command()
def train(config: Config, out: Out = None) -> None:
    """Train a base or a CODI model over one: how the shipped checkpoints were made."""
    from configs import TrainConfig, load_config

    settings = load_config(config, TrainConfig, out=here(out))
    if settings.base is not None and not (settings.base / "config.json").is_file():
        raise ValueError(f"{settings.base}: no base model there; train it first: codi train configs/train_base.toml")
    from traces.train import train

    def say(step: int, figures: dict) -> None:
        typer.echo(f"step {step:>6}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    train(settings, say)
    typer.echo(f"written to {from_here(settings.out)}")


@app.command()
def ask(
    checkpoint: Checkpoint,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotes.")],
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Answer one question, and show which tokens each latent step is nearest to."""
    if not question.strip():
        raise ValueError("the question is empty; put one in quotes")
    from patching.pairs import format_number
    from traces import load_codi
    from traces.thought import ask

    asked = ask(load_codi(checkpoint, device, dtype), question)
    typer.echo(f"answer  {format_number(asked.answer)}  (the model said: {asked.answer_text.strip()!r})\n")
    typer.echo(
        aligned([["step", "nearest tokens"], *([str(i), "  ".join(near)] for i, near in enumerate(asked.steps))])
    )


def here(path: Path | None) -> Path | None:
    """A path of the command line: relative to the current folder."""
    return None if path is None else path.resolve()


def pair_bar(pairs: Iterable[Any]) -> Iterable[Any]:
    """A progress bar over the pairs' figures; none where nobody watches."""
    from tqdm import tqdm

    return tqdm(pairs, desc="figures", unit="pair", disable=None)


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a text table: columns two blanks apart, those that hold numbers to the right, the last one ragged."""
    rows = [list(row) for row in rows]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell[-1:].isdigit() or cell.endswith("%") for cell in column[1:]) for column in columns]
    pad: list[Callable[[str, int], str]] = [str.rjust if numeric else str.ljust for numeric in right]
    return "\n".join("  ".join(p(c, w) for p, c, w in zip(pad, row, widths, strict=True)).rstrip() for row in rows)


def mark(grade: str, passed: bool | None) -> str:
    """How a check went, in a word: only an invariant can fail, a finding is as hoped for or to be noted."""
    if passed is None:
        return "measured"
    return "ok" if passed else {"invariant": "FAILED"}.get(grade, "note")


def failed_invariants(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.grade == "invariant" and not check.passed]


def pair_lines(found: dict[str, Any]) -> list[list[str]]:
    """The description of a file of pairs, as rows of name and value."""

    def spread(values: dict[str, float]) -> str:
        return f"{values['min']} to {values['max']}, median {values['median']}"

    places = [change["place"] for change in found["changed_number"]]
    changed = f"exactly one in {len(places)} of {found['pairs']} pairs"
    if places:
        changed += f", the first numeral of the question in {places.count(0)}"
    return [
        ["pairs", f"{found['pairs']} in {found['clusters']} clusters, {found['usable']} usable"],
        ["equal answers", str(len(found["equal_answers"]))],
        ["reasoning steps", ", ".join(f"{n} questions with {steps}" for steps, n in found["reasoning_steps"].items())],
        ["answer difference", spread(found["answer_difference"])],
        ["question words", spread(found["question_words"])],
        ["changed numbers", changed],
    ]


def print_conclusions(folder: Path, page: Path) -> None:
    """Where the report is, the checks, the four corners and their verdict, and the largest layers."""
    import json

    from analysis import read_table, verdict

    table = read_table(folder / "cells.parquet")
    checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
    typer.echo(f"\nReport: {from_here(page)}\n")
    typer.echo(check_lines(checks))
    typer.echo("\nThe four corners: which question and which thought a run reads, and what it answers")
    typer.echo(said_or_why(corner_lines, table))
    typer.echo(f"\n{verdict(table).sentence}")
    typer.echo("\nLayers by specific effect (beyond an unrelated thought's) on the logit difference, denoising")
    typer.echo(said_or_why(layer_lines, table))


def check_lines(checks: list[dict[str, Any]]) -> str:
    """How many invariants hold, and every check that did not pass, but for the corners, which follow."""
    graded = [check["passed"] for check in checks if check["grade"] == "invariant"]
    lines = [f"{sum(graded)} of {len(graded)} invariants hold."]
    failed = [c for c in checks if c["passed"] is False and c["name"] != "corners"]
    return "\n".join([*lines, *(f"{mark(c['grade'], c['passed'])}: {c['sentence']}" for c in failed)])


def said_or_why(lines: Callable[[pd.DataFrame], list[list[str]]], table: pd.DataFrame) -> str:
    """A part of the conclusions, or why this table does not allow it."""
    try:
        return aligned(lines(table))
    except ValueError as error:
        return f"not shown: {error}"


def corner_lines(table: pd.DataFrame) -> list[list[str]]:
    from analysis import corners

    heads = ["question", "thought", "logit difference", "95 % interval", "clean", "corrupted", "other", "n"]
    return [heads] + [
        [row.question, row.thought, f"{row.logit_difference:.2f}", interval(row)]
        + [f"{share:.0%}" for share in (row.answer_clean, row.answer_corrupted, row.answer_other)]
        + [str(row.n)]
        for row in corners(table).itertuples()
    ]


def layer_lines(table: pd.DataFrame) -> list[list[str]]:
    """The five largest layers; the word "critical" stands only where the statistics allow it."""
    from analysis import critical

    found = critical(table, direction="denoising", metric="logit_difference")
    found = found[(found["site"] == "resid") & found["step"].isna()].head(5)
    heads = ["layer", "effect", "95 % interval", "rank", "n", "clusters", ""]
    return [heads] + [
        [str(row.layer), f"{row.effect:.2f}", interval(row), f"{row.rank_low}-{row.rank_high}", str(row.n)]
        + [str(row.clusters), "critical" if row.critical else ""]
        for row in found.itertuples()
    ]


def interval(row: Any) -> str:
    return f"[{row.low:.2f}, {row.high:.2f}]"


def main() -> None:
    """The `codi` command."""
    app(prog_name="codi")


if __name__ == "__main__":
    sys.exit(main())
