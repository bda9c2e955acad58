"""What all commands share: the application, exit codes, error sentences, option types, text output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130  # exit codes
SHIPPED_PAIRS = Path("arithmetic")  # by name, as `load_pairs` takes it
COMMANDS = (
    "run", "plan", "merge", "report", "compare", "lens", "score", "check", "ask", "eval", "convert", "train",
    "pairs", "remote",
)  # fmt: skip


class CodiGroup(TyperGroup):
    """Reports bad input as one line on stderr with exit code 2; any other exception is a bug."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)

    def invoke(self, ctx: Any) -> Any:
        if current_folder() is None:
            stop(
                "the current folder no longer exists; change to one that does, and give the command again",
                EXIT_BAD_INPUT,
            )
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            stop(str(interruption) or "interrupted; give the same command again to continue", EXIT_INTERRUPTED)
        except MemoryError as error:
            stop(str(error) or "memory ran out; use a smaller batch or a larger machine", EXIT_BAD_INPUT)
        except BrokenPipeError:
            raise
        except OSError as error:
            stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), EXIT_BAD_INPUT)
        except ValueError as error:
            stop(str(error), EXIT_BAD_INPUT)


def stop(sentence: str, code: int) -> NoReturn:
    """Print one line on stderr and exit with `code`."""
    line = printable(from_here(sentence))
    typer.echo(f"codi: {line if len(line) <= 5_000 else f'{line[:5_000]}…'}", err=True)
    raise typer.Exit(code)


def from_here(text: object) -> str:
    """The text with paths under the current folder made relative, unless that is the root of all paths."""
    here = current_folder()
    return str(text) if here is None or here == here.parent else str(text).replace(f"{here}{os.sep}", "")


def current_folder() -> Path | None:
    """The current folder; None if it was removed, or may not be read."""
    try:
        return Path.cwd()
    except OSError:
        return None


def printable(text: str) -> str:
    """The text in one line, without control characters: text from a file must not steer the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


app = typer.Typer(
    cls=CodiGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Causal tracing of latent chain of thought.

    A CODI model thinks in latent steps, without text. `codi` runs a clean and a corrupted question, exchanges
    activations of their latent steps, and measures whether the answer follows.""",
    epilog="""\b
Start here:
  codi ask thought "On Sunday Ann had 7 pens. ..."
  codi check bypass           invariants, and findings about this model
  codi run tiny               the layer-wise experiment, a minute
  codi plan sitewise          the cost of a run, before it runs
  codi run matched            does the thought compute? configs/ has more
  codi lens thought           tokens that each latent step decodes to
  codi report runs/tiny       draw figures and report again

A run that was interrupted or killed continues when the same command is given
again; codi run --shard 2/8 runs one of eight shards, codi merge joins them.

\b
With your own pairs and model:
  codi convert upstreams_output --base gpt2 --alpha 32 --out my_model
  codi eval my_model --data gsm8k_test.jsonl
  codi pairs make gsm8k_test.jsonl --out my_pairs.json
  codi pairs check my_pairs.json --checkpoint my_model
  codi run tiny --checkpoint my_model --pairs my_pairs.json \\
      --limit 8 --out runs/mine

CONFIG is a TOML file or the name of a shipped one; CHECKPOINT is a folder or
the name of a shipped one (thought, bypass). Paths on the command line are
relative to the current folder, paths in a config to that file.

Exit codes: 0 done, 1 an invariant failed or a training diverged, 2 bad
input, 130 interrupted.""",
)

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A TOML file, or a shipped config's name; see configs/README.md.")
]
Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder (with codi.json), or thought or bypass.")
]
OtherCheckpoint = Annotated[Path | None, typer.Option(help="Replaces the config's checkpoint.")]
Limit = Annotated[int | None, typer.Option(help="Patch only the first LIMIT usable pairs.")]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Only shard I of N, into a folder of its own.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")]
Out = Annotated[Path | None, typer.Option(help="Output folder, instead of the config's `out`.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace what is there.")]
Force = Annotated[
    bool, typer.Option("--force", help="Run although an invariant failed, and resume under other package versions.")
]
OnNdif = Annotated[
    bool, typer.Option("--remote", help="Run on an NDIF deployment: the config's, NDIF_HOST's, or the public one.")
]


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSONL, completely or not at all."""
    import json

    from codi_tracing.analysis.io.atomic import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def writable(fresh: bool, *paths: Path) -> None:
    """Refuse, before anything runs, to replace what is there without `--fresh`, or a file that cannot be written."""
    from codi_tracing.analysis.io.atomic import open_temporary, require_replaceable

    for path in paths:
        require_replaceable(path)
        if path.exists() and not fresh:
            raise ValueError(f"{path}: exists already; --fresh replaces it, or choose another with --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = open_temporary(path)
        os.close(handle)
        temporary.unlink()


def absolute(path: Path | None) -> Path | None:
    """A path of the command line, which is relative to the current folder."""
    return None if path is None else path.resolve()


def pair_bar(pairs: Iterable[Any]) -> Iterable[Any]:
    """A progress bar over the figures of single pairs; silent where stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(pairs, desc="figures", unit="pair", disable=None)


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a text table with two blanks between columns, numbers right-aligned; the first row may be a header."""
    columns = [list(map(printable, column)) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    numbers = [all(cell.rstrip("%").lstrip("-").replace(".", "").isdigit() for cell in c[1:]) for c in columns]
    padded = [
        [cell.rjust(width) if right else cell.ljust(width) for cell in column]
        for column, width, right in zip(columns, widths, numbers, strict=True)
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def first_lines(lines: Sequence[str], noun: str, header: int = 0, limit: int = 20) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - header - limit
    return [*lines[: header + limit], *([f"… and {rest} more {noun}; --json lists all"] if rest > 0 else [])]


def report_and_print(folder: Path, figures: Path | None = None) -> None:
    """Write a run's report, then print its path and its conclusions."""
    from codi_tracing.analysis.report.conclusions import conclusions
    from codi_tracing.analysis.report.finished_run import read_run
    from codi_tracing.analysis.report.write import write_report
    from codi_tracing.patching.runs.lock import lock_folder

    run = read_run(folder)
    with lock_folder(folder):
        page = write_report(run, figures or True, progress=pair_bar)
    typer.echo(f"\nReport: {from_here(page)}\n")
    print_paragraphs(conclusions(run))


def print_left_out(left_out: str) -> None:
    """Print how many records of a file of questions are not used, and why."""
    if left_out:
        typer.echo(printable(left_out))


def typeable(path: Path) -> str:
    """A path as it can be typed after a command."""
    return quote(from_here(path))


def print_paragraphs(paragraphs: Iterable[Any]) -> None:
    """Print sentences as they are and tables as aligned rows."""
    for paragraph in paragraphs:
        typer.echo(paragraph if isinstance(paragraph, str) else aligned(paragraph))
