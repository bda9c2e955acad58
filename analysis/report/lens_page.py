"""The lens's page: what the thoughts of a model say, in sentences, figures and one offline file."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pandas.api.types import is_numeric_dtype

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.io.html import (
    facts,
    figure,
    figure_row,
    folded,
    html_table,
    page,
    paragraph,
    section,
    title_line,
)
from codi_tracing.analysis.io.images import save_figures, vega_bundle
from codi_tracing.analysis.lens.attention import attention_by_layer, attention_map
from codi_tracing.analysis.lens.charts import decodable_bars, entropy_heatmap, lens_grid, said_heatmaps
from codi_tracing.analysis.lens.statistics import (
    TOP,
    attended,
    check_columns,
    decodable,
    overall,
    said_where,
    uncertainty,
)

ABOUT = "lens.json"
TABLES = {
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
    ("interval", "95 %, from resampling clusters (source questions; for templates, the template)"),
)


class LensFolder(NamedTuple):
    """What `codi lens` wrote."""

    about: dict[str, Any]
    says: pd.DataFrame
    values: pd.DataFrame
    attention: pd.DataFrame
    questions: pd.DataFrame


def read_lens(folder: Path | str) -> LensFolder:
    """Read the tables of a lens folder; ValueError, in one sentence, where one is not whole."""
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(f"{folder / ABOUT}: no such file; wanted a folder as `codi lens` leaves it")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("model"), dict | None):
        raise ValueError(f"{folder / ABOUT}: is not whole JSON; run codi lens again to write it")
    if about.get("finished") is False:
        raise ValueError(f"{folder}: this lens was cut short; run codi lens again")
    tables = []
    for name, columns in TABLES.items():
        path = folder / f"{name}.parquet"
        try:
            table = pd.read_parquet(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file; run codi lens again to write it") from None
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


def lens_sentences(found: LensFolder, top: int = TOP) -> list[str]:
    """What the tables show, in words."""
    right = correct_only(found)
    said = [f"The model answers {int(found.questions['correct'].sum())} of {len(found.questions)} questions correctly."]
    alone = right.drop_duplicates(["question_id", "owner", "role", "ordinal"])
    if split := int(alone[alone["owner"] == "own"]["rank"].isna().sum()):
        said.append(f"{split} numbers of those are no single token, and count as not said.")
    try:
        shares = {
            row["owner"]: row for row in overall(right, top).to_dict("records") if row["measure"] == "all of them"
        }
    except ValueError as error:
        return [*said, f"Intermediates are not looked for: {error}."]
    own = shares["own"]
    said.append(
        f"Of those {own['n']} whose solution has intermediates, {_share(own)} have all of them among the {top} "
        "likeliest tokens of some latent after the last layer"
    )
    if "another" in shares:
        said[-1] += f"; another question's intermediates are found in {_share(shares['another'])}"
    said[-1] += "."
    return [
        *said,
        "What a state says is not what it does: whether the answer depends on it, patching tells (codi run).",
    ]


def correct_only(found: LensFolder) -> pd.DataFrame:
    """The numbers of the questions that the model answers correctly."""
    right = found.questions.loc[found.questions["correct"].astype(bool), "question_id"]
    return found.values[found.values["question_id"].isin(right)]


def write_lens_report(folder: Path | str, question_id: str | None = None, figures: Path | None = None) -> Path:
    """Draw a lens folder's figures and its page, `lens.html`, from its tables alone.

    `question_id` is whose thought is shown in words, the first question's where it is left out; `figures` is another
    folder for the charts.
    """
    folder = Path(folder)
    found = read_lens(folder)
    shown = str(found.questions["question_id"].iloc[0]) if question_id is None else question_id
    right = correct_only(found)
    drawers = {
        "thought": lambda: lens_grid(found.says, found.values, found.questions, shown),
        "decodable": lambda: decodable_bars(decodable(right)),
        "said_where": lambda: said_heatmaps(said_where(right)),
        "entropy": lambda: entropy_heatmap(uncertainty(found.says, found.questions)),
        "attention": lambda: attention_map(attended(found.attention)),
        "attention_by_layer": lambda: attention_by_layer(attended(found.attention, by_layer=True)),
    }
    specs, quiet = {}, {}
    for name, draw in drawers.items():
        try:
            specs[name] = draw().to_dict()
        except ValueError as error:
            if name == "thought":  # the question that was asked for is not there
                raise
            quiet[name] = f"Not shown: {error}."

    def place(name: str) -> str:
        return figure(name) if name in specs else paragraph(quiet[name], "quiet")

    bundle = vega_bundle()
    save_figures(specs, figures or folder / "charts", bundle)
    model = found.about.get("model") or {}
    line = f"{found.about.get('created', '')}; checkpoint {model.get('checkpoint', 'unknown')}"
    body = [
        title_line(f"{folder.name}: what a latent thought says", line),
        section("In words", *(paragraph(sentence) for sentence in lens_sentences(found))),
        section("One thought", place("thought")),
        section("Known numbers in all thoughts", figure_row(place("decodable"), place("said_where"), place("entropy"))),
        section("Attention", figure_row(place("attention"), place("attention_by_layer"))),
        section("Definitions", html_table(("", ""), DEFINITIONS)),
        folded("The run", facts(found.about)),
    ]
    return write_whole(folder / "lens.html", page(folder.name, body, specs, bundle).encode())


def _share(row: dict[Hashable, Any]) -> str:
    interval = "one cluster, so no interval" if pd.isna(row["low"]) else f"{row['low']:.0%}, {row['high']:.0%}"
    return f"{row['share']:.0%} [{interval}]"
