"""codi report, compare, lens, score: figures, pages and tables from what was computed."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from codi_tracing.cli.app import (
    SHIPPED_PAIRS,
    Checkpoint,
    Device,
    Dtype,
    Fresh,
    OnNdif,
    aligned,
    app,
    from_here,
    print_left_out,
    print_paragraphs,
    report_and_print,
    writable,
)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `codi run` wrote.")],
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures there, without those of single pairs.")
    ] = None,
) -> None:
    """Draw the figures of a run (PNG at 300 dpi, SVG, HTML, Vega-Lite) and write its report again, from its table.

    A folder that `codi lens` wrote is drawn again too.
    """
    if (run / "lens.json").is_file():
        from codi_tracing.analysis.report.lens_page import write_lens_report
        from codi_tracing.patching.runs.lock import lock_folder

        with lock_folder(run):
            print_lens(run, write_lens_report(run, figures=figures))
        return
    report_and_print(run, figures)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another run folder, on the same pairs.")],
    metric: Annotated[str, typer.Option(help="The metric whose effects are compared.")] = "transfer",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the table and the chart there.")] = None,
    fresh: Fresh = False,
) -> None:
    """Compare two runs on the same pairs, e.g. of two checkpoints or protocols: paired differences with intervals."""
    from codi_tracing.analysis.report.conclusions import comparison
    from codi_tracing.analysis.report.write import write_comparison

    if out is not None:
        writable(fresh, out / "comparison.parquet")
    print_paragraphs(comparison(first, second, metric))
    if out is not None:
        typer.echo(f"\nTable and chart: {from_here(write_comparison(first, second, out, metric))}")


@app.command()
def lens(
    checkpoint: Checkpoint,
    pairs: Annotated[Path, typer.Option(help="A file of pairs.", show_default="the shipped pairs")] = SHIPPED_PAIRS,
    data: Annotated[
        Path | None, typer.Option(help="Instead of pairs: questions and answers, as for codi eval.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first LIMIT pairs or questions.")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Keep the TOP likeliest tokens.")] = 10,
    question: Annotated[
        str | None, typer.Option(metavar="ID", help='Draw this question, e.g. "0 clean", or a line number of the data.')
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the questions whose numbers give the chance level.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Questions per forward.")] = 16,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Output folder.", show_default="runs/lens-<checkpoint>")
    ] = None,
    fresh: Fresh = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    remote: OnNdif = False,
) -> None:
    """Decode each latent step (logit lens) and its attention; count the known intermediates among its top tokens.

    Writes tables, figures and a page, with a chance level. Decodability is no causal claim: use `codi run` for that.
    """
    from codi_tracing.patching.lens.questions import questions_from_pairs, questions_from_problems

    if data is not None and pairs != SHIPPED_PAIRS:
        raise ValueError("--pairs and --data are both given, expected one of them")
    if data is None:
        from codi_tracing.patching.pairs.pair import load_pairs

        left_out, questions = "", questions_from_pairs(load_pairs(pairs)[:limit])
    else:
        from codi_tracing.traces.gsm8k import read_problems

        read = read_problems(data)
        left_out, questions = read.left_out, questions_from_problems(read.problems[:limit])
    if question is not None and question not in {each.question_id for each in questions}:
        raise ValueError(f"--question is {question!r}; the first of {len(questions)} is {questions[0].question_id!r}")
    from codi_tracing.analysis.report.lens_page import write_lens_report
    from codi_tracing.patching.lens.tables import lens_manifest, lens_tables, open_lens_folder, save_lens
    from codi_tracing.patching.pairs.json_records import find_pairs_file
    from codi_tracing.patching.runs.lock import lock_folder
    from codi_tracing.traces.model.loading import load_codi

    model = load_codi(checkpoint, device, dtype, remote)
    folder = open_lens_folder(out or Path("runs", f"lens-{checkpoint.resolve().name}"), fresh)
    with lock_folder(folder):
        tables = lens_tables(model, questions, top=top, batch_size=batch, seed=seed, progress=True)
        save_lens(tables, folder, lens_manifest(model, data or find_pairs_file(pairs), questions, top, seed))
        print_left_out(left_out)
        print_lens(folder, write_lens_report(folder, question))


@app.command("score")
def score_dump(
    dump: Annotated[Path, typer.Argument(metavar="DUMP", help="Upstream's decoded_latent.txt, or a file like it.")],
    top: Annotated[int, typer.Option(min=1, help="Count the TOP likeliest tokens.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the questions whose numbers give the chance level.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the table and the chart there.")] = None,
    fresh: Fresh = False,
) -> None:
    """Score a published dump of decoded latents: the shares of decoded intermediates, and their chance level.

    Tokens are matched as in `codi lens`: a token counts where it equals the number, ignoring blanks.
    """
    if out is not None:
        writable(fresh, out / "decodable.parquet")
    from codi_tracing.patching.lens.dump import dump_tables, read_dump

    says, values = dump_tables(*read_dump(dump), seed=seed)
    from codi_tracing.analysis.lens.charts import OWNERS
    from codi_tracing.analysis.lens.statistics import decodable, match_tokens, number_first

    if top > (kept := int(says.groupby(["question_id", "step"])["rank"].max().min())):
        raise ValueError(
            f"{dump}: holds the {kept} likeliest tokens of each latent; --top can be 1 to {kept}, not {top}"
        )
    shares = decodable(match_tokens(says, values), top)
    wide = shares.pivot(index=["steps", "owner"], columns="measure", values=["share", "low", "high", "n"])
    rows = [
        [
            str(steps), OWNERS[owner], f"{row['share', 'all of them']:.1%}",
            "too few" if isnan(row["low", "all of them"])
            else f"[{row['low', 'all of them']:.1%}, {row['high', 'all of them']:.1%}]",
            f"{row['share', 'each of them']:.1%}", f"{row['n', 'all of them']:.0f}",
        ]
        for (steps, owner), row in zip(wide.index, wide.to_dict("records"), strict=True)
    ]  # fmt: skip
    heads = ["steps", "", "all decoded", "95 % interval", "each decoded", "n"]
    typer.echo(aligned([heads, *rows]))
    numbers = number_first(says)
    names = ["BoT" if step < 0 else f"step {step}" for step in numbers.index]
    typer.echo("\nLatents whose likeliest token is a number, by step:")
    typer.echo(aligned([names, [f"{share:.1%}" for share in numbers]]))
    if out is not None:
        from codi_tracing.analysis.io.atomic import write_whole
        from codi_tracing.analysis.io.images import save_figures, warn_of_faults
        from codi_tracing.analysis.lens.charts import decodable_bars

        warn_of_faults(save_figures({"decodable": decodable_bars(shares).to_dict()}, out))
        write_whole(out / "decodable.parquet", shares.to_parquet(index=False))
        typer.echo(f"\nTable and chart: {from_here(out)}")


def print_lens(folder: Path, page: Path) -> None:
    """Print the path of the lens page and its sentences."""
    from codi_tracing.analysis.report.lens_page import lens_sentences, read_lens

    typer.echo(f"\nPage: {from_here(page)}\n")
    print_paragraphs(lens_sentences(read_lens(folder)))
