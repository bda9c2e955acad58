"""A run folder to its figures, the original experiment's files, and one offline page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.figures.comparison import comparison_chart
from codi_tracing.analysis.figures.pairs import pair_specs
from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.io.html import render
from codi_tracing.analysis.io.images import save_figures, vega_bundle, warn_of_faults
from codi_tracing.analysis.io.png_worker import Drawing
from codi_tracing.analysis.io.summary_files import write_summary
from codi_tracing.analysis.io.written_files import AGGREGATE, INDIVIDUAL
from codi_tracing.analysis.report.catalogue import (
    Figure,
    figures_of_run,
    has_original_cells,
    question_and_answer,
)
from codi_tracing.analysis.report.compare_runs import compare_runs, run_names
from codi_tracing.analysis.report.explorer import explorer_data
from codi_tracing.analysis.report.explorer_charts import explorer_specs
from codi_tracing.analysis.report.finished_run import FinishedRun, read_run
from codi_tracing.analysis.report.original_files import write_original_files, write_original_pictures
from codi_tracing.analysis.report.sections import Shown, report_values
from codi_tracing.analysis.rows import layerwise_rows
from codi_tracing.analysis.statistics.measures import TRANSFER
from codi_tracing.analysis.statistics.results import Results

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def write_report(run: Path | str | FinishedRun, figures: bool | Path = True, progress: Progress | None = None) -> Path:
    """Write a run's report and return the page's path.

    The charts' own files go to the run's `charts`; `figures` names another folder for those of all pairs, and False
    writes none. PNG files have 300 dots an inch where a chart is printed 8 cm wide. `progress` wraps the loop over
    pairs' figures, as tqdm does. Where the table lacks the rows of a figure, the page gives the reason.
    """
    run = read_run(run)
    table, folder = run.results.table, run.folder
    asked = dict(zip(("question", "answer"), question_and_answer(run.experiment, run.results), strict=True))
    write_summary(folder, {**asked, **run.results.summary}, run.results.all_sites())
    if not layerwise_rows(table).empty:
        try:
            write_original_files(folder, run.results, run.pairs)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
    specs: dict[str, Any] = {}
    shown: list[Shown] = []
    for name, figure in figures_of_run(run.experiment, table):
        spec, text = try_figure(figure, run.results)
        specs |= {} if spec is None else {name: spec}
        shown.append(Shown(name, figure.section, spec is not None, text))
    bundle = vega_bundle()
    explorer = explorer_data(run.results, run.pairs)
    page = render(
        "report.html",
        **report_values(run, shown),
        explorer=explorer,
        explorer_charts=explorer_specs() if explorer else None,
        specs=specs,
        bundle=bundle,
    )
    written = write_whole(folder / "report.html", page.encode())
    faults: dict[str, str] = {}
    if figures is not False:
        faults |= save_figures(specs, folder / AGGREGATE if figures is True else figures, bundle)
    if figures is True:
        questions = {str(pair["pair_id"]): pair["clean"]["question"] for pair in run.pairs}
        faults |= save_pairs(table, questions, folder / INDIVIDUAL, progress)
        if has_original_cells(run.experiment, table):
            write_original_pictures(folder)
    warn_of_faults(faults)
    return written


def try_figure(figure: Figure, results: Results) -> tuple[dict[str, Any] | None, str]:
    """A figure's Vega-Lite and its sentence; None and the reason where the table does not allow it."""
    try:
        spec, text = figure.chart(results.once(figure.data)).to_dict(), figure.text(results)
    except ValueError as error:
        return None, f"Not shown: {error}."
    try:
        json.dumps(spec, allow_nan=False)
    except ValueError:  # an axis without an end
        return None, "Not shown: no effect that it draws is defined, as where no pair's two runs differ."
    return spec, text


def write_comparison(first: Path, second: Path, folder: Path, metric: str = TRANSFER) -> Path:
    """The table and the chart of two runs compared, as comparison.parquet and comparison.png, .svg, .html, .json."""
    compared = compare_runs(first, second, metric)
    chart = comparison_chart(compared, run_names(first, second)).to_dict()
    warn_of_faults(save_figures({"comparison": chart}, folder))
    write_whole(folder / "comparison.parquet", compared.to_parquet(index=False))
    return folder


def save_pairs(
    table: pd.DataFrame, questions: Mapping[str, str], folder: Path, progress: Progress | None = None
) -> dict[str, str]:
    """Each pair's chart as PNG and Vega-Lite JSON, `pair_<id>`, in names that every file system takes.

    Returns why a chart could not be drawn, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specs = dict(pair_specs(table, questions))
    paths = [folder / f"{stem}.json" for stem in file_stems(specs).values()]
    for path, spec in zip(paths, specs.values(), strict=True):
        write_json(path, spec, indent=None)
    drawing = Drawing(paths)
    for _ in progress(drawing) if progress else drawing:
        pass
    return {path.stem: fault for path, fault in drawing.faults.items()}


def file_stems(pair_ids: Iterable[str]) -> dict[str, str]:
    """A file name without suffix for each pair: letters, digits, `_`, `-` and `.`, unique without regard to case."""
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for pair_id in pair_ids:
        plain = "pair_" + re.sub(r"[^A-Za-z0-9._-]+", "_", pair_id)[:80]
        stem, count = plain, 1
        while stem.lower() in taken:
            count += 1
            stem = f"{plain}_{count}"
        taken.add(stem.lower())
        stems[pair_id] = stem
    return stems
