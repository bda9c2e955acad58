"""codi pairs check, make, arithmetic: files of clean/corrupted pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from codi_tracing.cli.app import (
    EXIT_BAD_INPUT,
    Device,
    Dtype,
    Fresh,
    aligned,
    first_lines,
    from_here,
    print_left_out,
    printable,
    stop,
    typeable,
    writable,
    write_lines,
)

pairs_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check a file of clean/corrupted pairs, or make one."
)


@pairs_app.command("check")
def check_pairs(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON, JSONL or CSV: one object per pair, or two records per pair.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Also tokenise and answer the pairs with this checkpoint.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole description as JSON.")] = False,
) -> None:
    """Describe a file of pairs and give a verdict for each: usable, usable with some metrics, or not usable.

    With a checkpoint, both questions of each pair are tokenised and answered. The exit code is 2 where the file is
    invalid or a pair is not usable; `codi run` excludes such pairs and lists them.
    """
    import json

    from codi_tracing.patching.pairs.json_records import PairsError
    from codi_tracing.patching.pairs.pair import load_pairs
    from codi_tracing.patching.pairs.summary import summarise_pairs, summary_rows, verdict_rows
    from codi_tracing.patching.pairs.verdicts import judge

    try:
        pairs = load_pairs(file)
    except PairsError as error:
        refuse_pairs(file, error.problems, as_json)
    model = None
    if checkpoint is not None:
        from codi_tracing.traces.model.loading import load_codi

        model = load_codi(checkpoint, device, dtype)
    summary = summarise_pairs(pairs, judge(pairs, model, progress=True))
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        typer.echo(aligned(summary_rows(summary)))
        if rows := verdict_rows(summary["each"]):
            typer.echo("\n" + "\n".join(first_lines(aligned(rows).splitlines(), "pairs", header=1)))
    if problems := summary["problems"]:
        count = f"{len(problems)} of {len(pairs)} pairs are not usable; the first is " if len(problems) > 1 else ""
        stop(f"{file}: {count}{problems[0]}", EXIT_BAD_INPUT)


def refuse_pairs(file: Path, problems: Sequence[str], as_json: bool) -> NoReturn:
    """Print each problem of a file of pairs on its own line, and exit."""
    import json

    if as_json:
        typer.echo(json.dumps({"problems": problems}, indent=2, ensure_ascii=False))
    for problem in first_lines(problems, "problems"):
        typer.echo(f"codi: {printable(f'{from_here(file)}: {problem}')}", err=True)
    raise typer.Exit(EXIT_BAD_INPUT)


@pairs_app.command("make")
def make_gsm8k_pairs(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Questions with annotated solutions, as GSM8K's test.jsonl.")
    ],
    out: Annotated[Path, typer.Option(help="The file of pairs to write, .json or .jsonl.")],
    seed: Annotated[int, typer.Option(help="Seed of the choice of edits.")] = 0,
    per_question: Annotated[int, typer.Option(min=1, help="Most pairs per question; they share a cluster.")] = 1,
    delta: Annotated[
        list[int] | None, typer.Option(help="Allowed change of a number, e.g. 1 or -1; default any.")
    ] = None,
    edit: Annotated[
        list[str] | None, typer.Option(help="first_operand, later_operand, operator_word; default all.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep edits whose questions have equal token counts in its tokenizer.")
    ] = None,
    fresh: Fresh = False,
) -> None:
    """Make verified pairs from questions as GSM8K's: one number or operator word changed, both answers computed.

    Each operand of the annotated solution is traced to the question, and the whole chain is recomputed exactly.
    """
    from codi_tracing.traces.gsm8k import read_problems

    read = read_problems(file)
    if out.resolve() == file.resolve():
        raise ValueError(f"{out}: is the file of the questions; choose another file with --out")
    writable(fresh, out)
    from codi_tracing.analysis.io.atomic import write_json
    from codi_tracing.patching.pair_making.gsm8k import equal_tokens, pairs_from_gsm8k
    from codi_tracing.patching.pair_making.number_edits import EDITS

    same_length = equal_tokens(str(checkpoint)) if checkpoint is not None else None
    records, funnel = pairs_from_gsm8k(
        read.problems,
        seed=seed,
        per_question=per_question,
        deltas=delta or (),
        edits=edit or EDITS,
        same_length=same_length,
    )
    if out.suffix == ".jsonl":
        write_lines(out, records)
    else:
        write_json(out, records)
    print_left_out(read.left_out)
    typer.echo(aligned([("", "count"), *funnel.lines()]))
    typer.echo(f"written to {from_here(out)}; look at them with: codi pairs check {typeable(out)}")


@pairs_app.command("arithmetic")
def arithmetic_pairs(
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    checkpoint: Annotated[
        list[Path], typer.Option(help="A checkpoint that must answer both sides; may be given repeatedly.")
    ],
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Number of pairs.")] = 66,
    fresh: Fresh = False,
) -> None:
    """Make pairs of arithmetic word problems.

    Every given checkpoint answers both sides of each pair correctly. The shipped pairs were made with it.
    """
    from codi_tracing.patching.pair_making.arithmetic import write_arithmetic_pairs

    writable(fresh, out)
    write_arithmetic_pairs(checkpoint, count, seed, out)
    typer.echo(f"{count} pairs in {out}")
