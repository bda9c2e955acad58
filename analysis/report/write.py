"""A run folder to its figures, the original experiment's files, and one offline page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.figures.comparison import compare_runs, comparison_chart, run_names
from codi_tracing.analysis.figures.pairs import pair_specs
from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.io.html import page
from codi_tracing.analysis.io.images import save_figures, vega_bundle
from codi_tracing.analysis.io.png_worker import Drawing
from codi_tracing.analysis.io.run_folder import read_checks, read_manifest, read_prepared
from codi_tracing.analysis.report.catalogue import Figure, fitting
from codi_tracing.analysis.report.explorer import explorer, explorer_script, explorer_section
from codi_tracing.analysis.report.original_files import write_legacy
from codi_tracing.analysis.report.sections import Shown, sections
from codi_tracing.analysis.rows import layerwise
from codi_tracing.analysis.statistics.verdict import LOW_CEILING
from codi_tracing.analysis.table import read_table

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def write_report(run: Path | str, figures: bool | Path = True, progress: Progress | None = None) -> Path:
    """Write a run's report and return the page's path.

    The charts' own files go to the run's `charts`; `figures` names another folder for those that are no single pair's,
    and False leaves all of them out. PNG files have 300 dots an inch where a chart is printed 8 cm wide.

    `progress` wraps the loop over pairs' figures, as tqdm does. What the table cannot show, the page says in its place.
    """
    run = Path(run)
    manifest = read_manifest(run)
    if part := manifest.get("shard"):
        raise ValueError(
            f"{run}: is shard {part} of a run and has no table; merge the shards: codi merge RUN… --out DIR"
        )
    if manifest.get("finished") is False:
        raise ValueError(f"{run}: this run was cut short; run it again, it goes on where it stopped")
    table = read_table(run / "cells.parquet")
    if table.empty:
        raise ValueError(f"{run / 'cells.parquet'}: the table has no rows; run the sweep again")
    checks, prepared = read_checks(run), read_prepared(run)
    questions = {str(pair["pair_id"]): pair["clean"]["question"] for pair in prepared}
    if not layerwise(table).empty:  # what the original experiment's files are about
        try:
            write_legacy(run, table, prepared)
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from None

    low_ceiling = (manifest.get("config") or {}).get("low_ceiling", LOW_CEILING)
    specs: dict[str, Any] = {}
    shown: list[Shown] = []
    for name, drawn in fitting(manifest.get("experiment") or "sweep", table):
        spec, text = try_figure(drawn, table, low_ceiling)
        specs |= {} if spec is None else {name: spec}
        shown.append(Shown(name, drawn.section, spec is not None, text))
    bundle = vega_bundle()
    if figures is not False:
        save_figures(specs, run / "charts" / "aggregate" if figures is True else figures, bundle)
    if figures is True:
        save_pairs(table, questions, run / "charts" / "individual", progress)
    title = f"{manifest.get('name') or run.name}: patching of a latent thought"
    found = explorer(table, prepared, low_ceiling)
    linked = "" if found is None else explorer_section(found)
    body = sections(title, manifest, table, checks, shown, low_ceiling, linked)
    text = page(title, body, specs, bundle, [] if found is None else [explorer_script(found)])
    return write_whole(run / "report.html", text.encode())


def try_figure(drawn: Figure, table: pd.DataFrame, low_ceiling: float) -> tuple[dict[str, Any] | None, str]:
    """A figure's specification and what it says; no specification where this table does not have what it wants."""
    rows = drawn.rows(table)
    try:
        spec, said = drawn.draw(rows, low_ceiling).to_dict(), drawn.says(rows) if drawn.says else ""
    except ValueError as error:
        return None, f"Not shown: {error}."
    try:
        json.dumps(spec, allow_nan=False)
    except ValueError:  # an axis without an end
        return None, "Not shown: no effect that it draws is defined, as where no pair's two runs differ."
    return spec, said


def write_comparison(first: Path, second: Path, folder: Path, metric: str = "logit_difference") -> Path:
    """The table and the chart of two runs compared, as comparison.parquet and comparison.png, .svg, .html, .json."""
    compared = compare_runs(first, second, metric)
    save_figures({"comparison": comparison_chart(compared, run_names(first, second)).to_dict()}, folder)
    write_whole(folder / "comparison.parquet", compared.to_parquet(index=False))
    return folder


def save_pairs(table: pd.DataFrame, questions: dict[str, str], folder: Path, progress: Progress | None = None) -> None:
    """Each pair's chart as PNG and Vega-Lite JSON, `pair_<id>`, in names that every file system takes."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = dict(pair_specs(table, questions))
    paths = [folder / f"{stem}.json" for stem in file_stems(specs).values()]
    for path, spec in zip(paths, specs.values(), strict=True):
        path.write_text(json.dumps(spec, allow_nan=False), encoding="utf-8")
    drawing = Drawing(paths)
    for _ in progress(drawing) if progress else drawing:
        pass


def file_stems(pair_ids: Iterable[str]) -> dict[str, str]:
    """A file name without ending for each pair: letters, digits, `_`, `-` and `.`, no two alike in any case."""
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
