"""Charts of the lens: one thought token by token, known numbers in all thoughts, and attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.marks import below
from codi_tracing.analysis.figures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.io.text import shorten
from codi_tracing.analysis.lens.statistics import NUMBER

OWNERS = {"own": "its own intermediates", "another": "another question's (chance level)"}
MARKS = {"an intermediate": ORANGE, "the answer": GREEN}
BLUES = ["#ffffff", "#6baed6", "#08519c"]
SHARES = alt.Scale(domain=[0, 1], range=BLUES, interpolate="rgb")
COLUMN_WIDTH = 44  # pixels of a step's column
ATTENDED_KEYS = ("special", "numbers", "words", "BoT", "step", "EoT", "answer")
COLOURS = (GREY, ORANGE, "#E69F00", "#CC79A7", BLUE, "#56B4E9", GREEN)
QUERIES = ("step", "EoT", "answer")


def lens_grid(says: pd.DataFrame, values: pd.DataFrame, questions: pd.DataFrame, question_id: str) -> Any:
    """One question's thought: every state's likeliest token, by layer and step, known numbers framed."""
    asked = questions[questions["question_id"] == question_id]
    if asked.empty:
        known = ", ".join(questions["question_id"].head(3))
        raise ValueError(f"no question {question_id!r}; there are {len(questions)}, the first are {known}")
    about, rows = asked.iloc[0], says[says["question_id"] == question_id]
    own = values[(values["question_id"] == question_id) & (values["owner"] == "own")]
    tops = rows.assign(said=rows["token"].map(token_label) + " " + rows["probability"].map("{:.0%}".format))
    tops = tops.groupby(["step", "layer"])["said"].agg("  ".join).rename("tops").reset_index()
    cells = with_labels(rows[rows["rank"] == 1].merge(tops, on=["step", "layer"]))
    number = pd.to_numeric(cells["token"].str.extract(f"^{NUMBER}$", expand=False))
    roles = own.drop_duplicates("value").set_index("value")["role"]  # an intermediate comes before the answer
    cells["mark"] = number.map(roles).map({"intermediate": "an intermediate", "answer": "the answer"})
    cells["text"] = cells["token"].map(token_label)
    legend = alt.Legend(format="%", values=[0, 0.5, 1], gradientLength=80)
    colour = alt.Color("probability:Q", scale=SHARES, legend=legend)
    base = state_axes(cells)
    tooltip = ["at", "in", alt.Tooltip("tops:N", title="likeliest"), alt.Tooltip("entropy:Q", format=".2f")]
    rects = base.mark_rect().encode(color=colour, tooltip=tooltip)
    frames = base.transform_filter("isValid(datum.mark)").mark_rect(filled=False, strokeWidth=2.5)
    frame = alt.Stroke(
        "mark:N", title="framed", scale=alt.Scale(domain=list(MARKS), range=list(MARKS.values())),
        legend=alt.Legend(orient="bottom", titleOrient="left"),
    )  # fmt: skip
    ink = alt.condition(alt.datum.probability > 0.6, alt.value("white"), alt.value("#222"))
    text = base.mark_text(fontSize=10, limit=COLUMN_WIDTH).encode(text="text:N", color=ink)
    steps = f"intermediates {about['intermediates']}; " if about["intermediates"] else ""
    return dress(
        (rects + frames.encode(stroke=frame) + text).properties(**grid_size(cells)),
        heading(
            "What one thought says: the likeliest token at every layer and step",
            str(about["question"]),
            f"{steps}answer {about['answer']:g}; the model said {str(about['said'])!r}",
            "Read through the final norm and LM head; exact after the last layer",
        ),
    )


def decodable_bars(shares: pd.DataFrame) -> Any:
    """Share of questions with decodable intermediates, from `decodable`, by steps of the solution, and chance level."""
    top = int(shares["top"].iloc[0])
    labelled = shares.assign(whose=shares["owner"].map(OWNERS))
    names = [name for owner, name in OWNERS.items() if owner in set(shares["owner"])]
    colour = alt.Color(
        "whose:N", title=None, scale=alt.Scale(domain=names, range=[BLUE, GREY][: len(names)]), legend=below(1)
    )
    base = alt.Chart(labelled).encode(
        x=alt.X("steps:O", title="steps of the solution", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("whose:N", sort=names),
        color=colour,
    )
    tooltip = ["whose", "steps", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("share", "low", "high"))]
    y = alt.Y("share:Q", title=None, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    points = base.mark_point(filled=True, size=50, opacity=1).encode(y=y, tooltip=[*tooltip, "n", "clusters"])
    whiskers = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    titles = {"all of them": "all of a question's", "each of them": "each by itself"}
    panels = [
        (whiskers + points)
        .transform_filter(alt.datum.measure == measure)
        .properties(width=WIDTH // 2 - 10, height=190, title=panel_title(title))
        for measure, title in titles.items()
    ]
    counts = shares[shares["owner"] == "own"].drop_duplicates("steps").set_index("steps")["n"]
    return dress(
        alt.hconcat(*panels),
        heading(
            f"Intermediates among the {top} likeliest tokens of some latent",
            "After the last layer, at BoT or any latent step; whiskers: 95% over clusters",
            "n = " + ", ".join(f"{n} questions of {steps} steps" for steps, n in counts.items()),
            width=WIDTH + 40,
        ),
    )


def number_heatmaps(shares: pd.DataFrame) -> Any:
    """Share of questions in which a number is decodable, from `number_shares`: a panel per number."""
    top, panels = int(shares["top"].iloc[0]), []
    for number in sorted(
        shares["number"].unique(), key=lambda number: (number == "another's", number == "answer", number)
    ):
        part = shares[shares["number"] == number]
        title = "another question's intermediates" if number == "another's" else number
        panels.append(
            state_heatmap(part, "share", ".0%", SHARES).properties(
                title=panel_title(f"{title} (n = {part['n'].max()})")
            )
        )
    return dress(
        alt.concat(*panels, columns=2),
        heading(
            f"Where a known number is among the {top} likeliest tokens",
            "Share of questions (of another question's: of its numbers); numbers that are no single token left out; "
            "intervals in the tooltips",
            f"{shares['clusters'].max()} clusters; read through the final norm and LM head",
            width=WIDTH * 2,
        ),
    )


def entropy_heatmap(entropies: pd.DataFrame) -> Any:
    """Mean entropy of the next token by layer and step, from `mean_entropy`."""
    scale = alt.Scale(domain=[0, max(float(entropies["entropy"].max()), 0.1)], range=BLUES, interpolate="rgb")
    return dress(
        state_heatmap(entropies, "entropy", ".1f", scale),
        heading(
            "How undecided a state is: entropy of its next token",
            "Mean over questions, in nats; read through the final norm and LM head; intervals in the tooltips",
            f"n = {entropies['n'].max()} questions, {entropies['clusters'].max()} clusters",
        ),
    )


def attention_map(weights: pd.DataFrame) -> Any:
    """Attention from each step, EoT and the answer to groups of tokens, from `mean_attention`, over all layers."""
    cells = weights.assign(text=weights["weight"].map(lambda weight: f"{100 * weight:.0f}" if weight >= 0.005 else ""))
    base = alt.Chart(cells).encode(
        x=alt.X(
            "key:N", sort=order_of(weights["key"], ATTENDED_KEYS), title="attended to", axis=alt.Axis(labelAngle=-45)
        ),
        y=alt.Y("query:N", sort=order_of(weights["query"], QUERIES), title="from"),
    )
    share = [alt.Tooltip(f"{name}:Q", format=".1%") for name in ("weight", "low", "high")]
    even = alt.Tooltip("even:Q", format=".1%", title="if spread evenly")
    rects = base.mark_rect().encode(
        color=alt.Color("weight:Q", title="attention", scale=SHARES, legend=alt.Legend(format="%", values=[0, 0.5, 1])),
        tooltip=["query", "key", *share, even, "n", "clusters"],
    )
    ink = alt.condition(alt.datum.weight > 0.6, alt.value("white"), alt.value("#222"))
    return dress(
        (rects + base.mark_text(fontSize=9).encode(text="text:N", color=ink)).properties(
            width=28 * weights["key"].nunique(), height=22 * weights["query"].nunique()
        ),
        heading(
            "What a thought and its answer attend to",
            "Per cent of attention, mean over questions, heads and layers; a row sums to 100",
            "numbers, words, special: the question's tokens; answer: its forced beginning, from its last token",
            f"n = {weights['n'].max()} questions, {weights['clusters'].max()} clusters; intervals in the tooltips",
            width=28 * weights["key"].nunique() + 60,
        ),
    )


def attention_by_layer(weights: pd.DataFrame, queries: Sequence[str] = ("EoT", "answer")) -> Any:
    """The same by layer, from `mean_attention(…, by_layer=True)`: a panel for each query, the latent steps summed."""
    rows = weights[weights["query"].isin(queries)]
    if rows.empty:
        known = ", ".join(weights["query"].unique())
        raise ValueError(f"the rows have no query {' or '.join(queries)}; they have {known}")
    groups = rows["key"].where(~rows["key"].str.startswith("step "), "latent steps")
    summed = rows.assign(key=groups).groupby(["query", "layer", "key"], as_index=False)[["weight", "even"]].sum()
    names = order_of(summed["key"], ATTENDED_KEYS)
    colours = dict(zip([*ATTENDED_KEYS[:4], "latent steps", *ATTENDED_KEYS[5:]], COLOURS, strict=True))
    colour = alt.Color(
        "key:N", title=None, scale=alt.Scale(domain=names, range=[colours[name] for name in names]), legend=below(4)
    )
    percent, whole = alt.Axis(format="%"), alt.Scale(domain=[0, 1])
    base = alt.Chart(summed).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("weight:Q", title="attention, mean over heads", axis=percent, scale=whole),
        color=colour,
        tooltip=["query", "key", "layer", alt.Tooltip("weight:Q", format=".1%"),
                 alt.Tooltip("even:Q", format=".1%", title="if spread evenly")],
    )  # fmt: skip
    lines = base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=28, opacity=1)
    panels = [
        lines.transform_filter(alt.datum.query == query).properties(
            width=WIDTH // 2, height=190, title=panel_title(f"from {query}")
        )
        for query in queries
    ]
    return dress(
        alt.hconcat(*panels).resolve_scale(y="shared"),
        heading(
            "What the answer attends to, layer by layer",
            f"Mean over heads and n = {rows['n'].max()} questions; latent steps summed",
            width=WIDTH + 60,
        ),
    )


def order_of(names: pd.Series, order: Sequence[str]) -> list[str]:
    """The names in the order of a run, `step 2` before `step 10`."""

    def position(name: str) -> tuple[int, int]:
        word, _, number = str(name).partition(" ")
        word = "step" if word == "latent" else word
        return order.index(word), int(number) if number.isdecimal() else 0

    return sorted(names.unique(), key=position)


def state_heatmap(values: pd.DataFrame, value: str, form: str, scale: alt.Scale) -> Any:
    """A heatmap of one number per layer and step, with the number in its cell."""
    cells = with_labels(values)
    base, most = state_axes(cells), scale.to_dict()["domain"][1]
    exact = ".1%" if form.endswith("%") else ".2f"
    tooltip: list[Any] = ["at", "in", *(alt.Tooltip(f"{name}:Q", format=exact) for name in (value, "low", "high"))]
    tooltip += [alt.Tooltip("median_rank:Q", format=".0f", title="median rank")] if "median_rank" in values else []
    legend = alt.Legend(format=form, values=[0, most / 2, most])
    rects = base.mark_rect().encode(
        color=alt.Color(f"{value}:Q", title=value, scale=scale, legend=legend), tooltip=[*tooltip, "n", "clusters"]
    )
    ink = alt.condition(alt.datum[value] > 0.6 * most, alt.value("white"), alt.value("#222"))
    text = base.mark_text(fontSize=9).encode(text=alt.Text(f"{value}:Q", format=form), color=ink)
    return (rects + text).properties(**grid_size(cells, 34))


def panel_title(title: str) -> alt.TitleParams:
    """A panel's own title, below the chart's."""
    return alt.TitleParams(text=title, fontSize=11)


def state_axes(cells: pd.DataFrame) -> alt.Chart:
    """Layers upwards, BoT and the steps from left to right."""
    return alt.Chart(cells).encode(
        x=alt.X(
            "at:N",
            sort=list(cells.sort_values("step")["at"].unique()),
            title="latent step",
            axis=alt.Axis(labelAngle=0),
        ),
        y=alt.Y("in:N", sort=list(cells.sort_values("layer", ascending=False)["in"].unique()), title="layer"),
    )


def with_labels(cells: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the names of their steps (`at`) and layers (`in`)."""
    return cells.assign(
        **{
            "at": cells["step"].map(lambda step: "BoT" if step < 0 else str(step)),
            "in": cells["layer"].map(lambda layer: "fed" if layer < 0 else str(layer)),
        }
    )


def grid_size(cells: pd.DataFrame, narrow: int = COLUMN_WIDTH) -> dict[str, int]:
    return {"width": narrow * cells["at"].nunique(), "height": 22 * cells["in"].nunique()}


def token_label(token: str) -> str:
    """A token without blanks around it, as a JSON string if it is blank or not printable; at most 12 characters."""
    bare = token.strip()
    return shorten(bare if bare and bare.isprintable() else json.dumps(token), 12)
