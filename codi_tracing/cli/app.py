"""The command line's application object, exit codes, error sentences and text output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import codi_tracing.patching

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit codes
SHIPPED_PAIRS = Path(str(codi_tracing.patching.__file__)).parent / "data" / "arithmetic_pairs.json"


class FrontDoor(TyperGroup):
    """Turns every bad input into one line on stderr and exit code 2. Anything else that is raised is a bug of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            stop(str(interruption) or "interrupted; what was not finished can be run again", INTERRUPTED)
        except MemoryError as error:
            stop(str(error) or "memory ran out; use a smaller batch or a larger machine", BAD_INPUT)
        except BrokenPipeError:
            raise
        except OSError as error:
            stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), BAD_INPUT)
        except ValueError as error:
            stop(str(error), BAD_INPUT)


def stop(sentence: str, code: int) -> NoReturn:
    """Say why on stderr, in one line, and leave with `code`."""
    said = printable(from_here(sentence))
    typer.echo(f"codi: {said if len(said) <= 5_000 else f'{said[:5_000]}…'}", err=True)
    raise typer.Exit(code)


def from_here(text: object) -> str:
    """The same text, paths under the current folder relative to it."""
    return str(text).replace(f"{Path.cwd()}{os.sep}", "")


def printable(text: str) -> str:
    """The same text in one line, without what would steer a terminal: a file's own words may hold anything."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


app = typer.Typer(
    cls=FrontDoor,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Causal tracing of latent chain of thought.

    A CODI model thinks in latent steps, without text. `codi` runs a clean and a corrupted question, exchanges what
    happens inside their thoughts, and measures whether the answer follows.""",
    epilog="""\b
Start here:
  codi ask traces/embedded/thought "On Sunday Ann had 7 pens. ..."
  codi check traces/embedded/bypass   what must hold, and what it turns out to be
  codi run configs/tiny.toml          the layer-wise experiment, a minute
  codi plan configs/sitewise.toml     what a run will take, before it runs
  codi run configs/matched.toml       does the thought compute? configs/ has more
  codi lens traces/embedded/thought   what each latent says, beside what it does
  codi report runs/tiny               its figures and report again

A run that was interrupted, or killed, goes on when the same command is given
again; codi run --shard 2/8 runs one of eight slices, codi merge joins them.

\b
With your own pairs and model:
  codi convert upstreams_output --base gpt2 --alpha 32 --out my_model
  codi eval my_model --data gsm8k_test.jsonl
  codi pairs make gsm8k_test.jsonl --out my_pairs.json
  codi pairs check my_pairs.json --checkpoint my_model
  codi run configs/tiny.toml --checkpoint my_model --pairs my_pairs.json \\
      --limit 8 --out runs/mine

Paths on the command line are relative to the current folder, those in a config to that file.

Exit codes: 0 done, 1 an invariant failed, 2 bad input, 130 interrupted.""",
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; configs/README.md lists every key.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A CODI checkpoint folder, with codi.json.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
Out = Annotated[Path | None, typer.Option(help="Where to write, instead of the config's `out`.")]
OnNdif = Annotated[
    bool, typer.Option("--remote", help="On a deployment of NDIF: the config's, else NDIF_HOST's, else the public one.")
]


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSONL."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def here(path: Path | None) -> Path | None:
    """A path of the command line: relative to the current folder."""
    return None if path is None else path.resolve()


def pair_bar(pairs: Iterable[Any]) -> Iterable[Any]:
    """A progress bar over the pairs' figures; none where nobody watches."""
    from tqdm import tqdm

    return tqdm(pairs, desc="figures", unit="pair", disable=None)


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a text table, two blanks between columns, numbers to the right; the first row may be their heads."""
    columns = [list(map(printable, column)) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    numbers = [all(cell.rstrip("%").lstrip("-").replace(".", "").isdigit() for cell in c[1:]) for c in columns]
    padded = [
        [cell.rjust(width) if right else cell.ljust(width) for cell in column]
        for column, width, right in zip(columns, widths, numbers, strict=True)
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def shortened(lines: Sequence[str], what: str, heads: int = 0, most: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - heads - most
    return [*lines[: heads + most], *([f"… and {rest} more {what}; --json lists all"] if rest > 0 else [])]


def report_and_print(folder: Path, figures: Path | None = None) -> None:
    """Write a run's report, then print its path and its conclusions."""
    from codi_tracing.analysis.report.conclusions import conclusions
    from codi_tracing.analysis.report.finished_run import read_run
    from codi_tracing.analysis.report.write import write_report

    run = read_run(folder)
    page = write_report(run, figures or True, progress=pair_bar)
    typer.echo(f"\nReport: {from_here(page)}\n")
    print_paragraphs(conclusions(run))


def print_paragraphs(paragraphs: Iterable[Any]) -> None:
    """Sentences, and tables as rows of text."""
    for paragraph in paragraphs:
        typer.echo(paragraph if isinstance(paragraph, str) else aligned(paragraph))
