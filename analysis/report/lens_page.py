"""The lens's page: decoded thoughts of a model in sentences, figures and one offline file."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas.api.types import is_numeric_dtype

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.io.html import render
from codi_tracing.analysis.io.images import save_figures, vega_bundle, warn_of_faults
from codi_tracing.analysis.io.run_folder import check_content
from codi_tracing.analysis.io.table_file import parse_parquet
from codi_tracing.analysis.lens.charts import (
    attention_by_layer,
    attention_map,
    decodable_bars,
    entropy_heatmap,
    lens_grid,
    number_heatmaps,
)
from codi_tracing.analysis.lens.statistics import (
    TOP,
    check_columns,
    decodable,
    decodable_overall,
    mean_attention,
    mean_entropy,
    number_shares,
)
from codi_tracing.analysis.report.sections import Shown, flat_rows
from codi_tracing.configs.files import LARGEST_TABLE, read_file, read_utf8

ABOUT = "lens.json"
LENS_TABLES = {
    "says": ("question_id", "step", "layer", "rank", "token", "probability", "entropy"),
    "values": ("question_id", "cluster_id", "steps", "owner", "role", "ordinal", "value", "step", "layer", "rank"),
    "attention": ("question_id", "cluster_id", "query", "layer", "key", "weight", "tokens"),
    "questions": ("question_id", "cluster_id", "question", "intermediates", "answer", "said", "correct"),
}
NUMBERS = ("step", "layer", "rank", "steps", "probability", "entropy", "weight", "tokens", "answer", "correct")
DEFINITIONS = (
    ("said", "a number is said where a token equal to it is among the likeliest ones of a state"),
    ("intermediates", "the results of a solution's annotated steps, but the last, which is the answer"),
    (
        "chance level",
        "the same with the intermediates of another question, drawn from those with as many: small numbers are among "
        "the likeliest tokens of many thoughts",
    ),
    ("fed", "what a step is fed: the projected state of the step before, read as if it were a layer's output"),
    ("BoT", "the state at the begin-of-thought token, which becomes the first latent"),
    ("interval", "95 %, Clopper–Pearson over clusters (source questions; for templates, the template)"),
)


class LensFolder(NamedTuple):
    """The tables that `codi lens` wrote, and `lens.json`."""

    about: dict[str, Any]
    says: pd.DataFrame
    values: pd.DataFrame
    attention: pd.DataFrame
    questions: pd.DataFrame


def read_lens(folder: Path | str) -> LensFolder:
    """Read the tables of a lens folder; ValueError, in one sentence, where one is damaged."""
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(f"{folder / ABOUT}: no such file; expected a folder that `codi lens` wrote")
    try:
        about = json.loads(read_utf8(folder / ABOUT))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("model"), dict | None):
        raise ValueError(f"{folder / ABOUT}: is not whole JSON; run codi lens again to write it")
    if about.get("finished") is False:
        raise ValueError(f"{folder}: this lens was interrupted; run codi lens again")
    tables = []
    for name, columns in LENS_TABLES.items():
        path = folder / f"{name}.parquet"
        try:
            content = read_file(path, LARGEST_TABLE)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file; run codi lens again to write it") from None
        check_content(path, content, about.get("files"), "run codi lens again to write it")
        try:
            table = parse_parquet(content)
        except Exception as error:  # a damaged file makes the libraries raise anything
            raise ValueError(f"{path}: is not a whole Parquet file; run codi lens again to write it") from error
        try:
            check_columns(table, columns)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        numbers = [name for name in NUMBERS if name in columns and not is_numeric_dtype(table[name])]
        if numbers or table.empty:
            found = f"its column {numbers[0]!r} holds no numbers" if numbers else "it has no rows"
            raise ValueError(f"{path}: {found}; run codi lens again to write it")
        tables.append(table)
    ids = set(tables[-1]["question_id"])
    if len(ids) < len(tables[-1]) or any(set(table["question_id"]) != ids for table in tables):
        raise ValueError(f"{folder}: its tables are of other questions, or twice of one; run codi lens again")
    return LensFolder(about, *tables)


def lens_sentences(lens: LensFolder, top: int = TOP) -> list[str]:
    """The tables' main numbers in sentences."""
    right = correct_only(lens)
    sentences = [
        f"The model answers {int(lens.questions['correct'].sum())} of {len(lens.questions)} questions correctly."
    ]
    alone = right.drop_duplicates(["question_id", "owner", "role", "ordinal"])
    if split := int(alone[alone["owner"] == "own"]["rank"].isna().sum()):
        sentences.append(f"{split} numbers of those are no single token, and count as not said.")
    try:
        shares = {
            row["owner"]: row
            for row in decodable_overall(right, top).to_dict("records")
            if row["measure"] == "all of them"
        }
    except ValueError as error:
        return [*sentences, f"Intermediates are not looked for: {error}."]
    own = shares["own"]
    sentences.append(
        f"Of those {own['n']} whose solution has intermediates, {_share(own)} have all of them among the {top} "
        "likeliest tokens of some latent after the last layer"
    )
    if "another" in shares:
        sentences[-1] += f"; another question's intermediates are found in {_share(shares['another'])}"
    sentences[-1] += "."
    return [
        *sentences,
        "What a state says is not what it does: whether the answer depends on it, patching tells (codi run).",
    ]


def correct_only(lens: LensFolder) -> pd.DataFrame:
    """The numbers of the questions that the model answers correctly."""
    right = lens.questions.loc[lens.questions["correct"].astype(bool), "question_id"]
    return lens.values[lens.values["question_id"].isin(right)]


def write_lens_report(folder: Path | str, question_id: str | None = None, figures: Path | None = None) -> Path:
    """Draw a lens folder's figures and its page, `lens.html`, from its tables alone.

    `question_id` names the question whose thought is shown token by token, by default the first; `figures` is another
    folder for the charts.
    """
    folder = Path(folder)
    lens = read_lens(folder)
    chosen = str(lens.questions["question_id"].iloc[0]) if question_id is None else question_id
    right = correct_only(lens)
    charts = {
        "thought": lambda: lens_grid(lens.says, lens.values, lens.questions, chosen),
        "decodable": lambda: decodable_bars(decodable(right)),
        "number_shares": lambda: number_heatmaps(number_shares(right)),
        "entropy": lambda: entropy_heatmap(mean_entropy(lens.says, lens.questions)),
        "attention": lambda: attention_map(mean_attention(lens.attention)),
        "attention_by_layer": lambda: attention_by_layer(mean_attention(lens.attention, by_layer=True)),
    }
    specs, shown = {}, {}
    for name, chart in charts.items():
        try:
            specs[name] = chart().to_dict()
            shown[name] = Shown(name, "", True, "")
        except ValueError as error:
            if name == "thought":  # the question that was asked for is not there
                raise
            shown[name] = Shown(name, "", False, f"Not shown: {error}.")
    bundle = vega_bundle()
    model = lens.about.get("model") or {}
    page = render(
        "lens.html",
        title=folder.name,
        about=f"{lens.about.get('created', '')}; checkpoint {model.get('checkpoint', 'unknown')}",
        sentences=lens_sentences(lens),
        shown=shown,
        definitions=DEFINITIONS,
        run=list(flat_rows(lens.about)),
        specs=specs,
        bundle=bundle,
    )
    written = write_whole(folder / "lens.html", page.encode())
    warn_of_faults(save_figures(specs, figures or folder / "charts", bundle))
    return written


def _share(row: dict[Hashable, Any]) -> str:
    interval = (
        f"clusters: {row['clusters']}, so no interval"
        if pd.isna(row["low"])
        else f"{row['low']:.0%}, {row['high']:.0%}"
    )
    return f"{row['share']:.0%} [{interval}]"
