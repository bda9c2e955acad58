"""Early stopping: how often the key is still given when only the first k latent steps are the run's own."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.experiments.ablation import OWN_KEY
from codi_tracing.analysis.figures.marks import below, dashes_below, scale_of, tips
from codi_tracing.analysis.figures.style import BLUE, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.labels import about_pooled
from codi_tracing.analysis.statistics.effects import pooled

REST = {  # what happens to the steps from k on: its words in a legend, and its colour
    "stopped": ("stopped after k steps: off-distribution", ORANGE),
    "resampled": ("steps from k on resampled: in distribution", BLUE),
}
SEES = {  # whether the answer sees the question: its words in a legend, and its dash
    True: ("answer sees the question", [1, 0]),
    False: ("question cut off: off-distribution", [4, 3]),
}
QUESTION_CUT = "answer-question"


def early_stops(table: pd.DataFrame) -> pd.DataFrame:
    """Share of runs (`effect`) that give their own key, by own steps `kept`, `rest`, and `sees_question`.

    Both hosts of each pair count, of the runs that are right unpatched; draws of a run are averaged. `rest` is what
    becomes of the steps from k on: none are thought (`stopped`), or the answer reads an unrelated run's (`resampled`).
    `trained` is the number of steps that the model was trained with, empty where no row tells it.
    """
    stopped = _stopped(table)
    if stopped.empty:
        raise ValueError(
            "the table has no rows of runs stopped early (site thought, source self, n_latents given); "
            "run configs/early_stop.toml"
        )
    resampled = _resampled(table)
    rows = pd.concat([stopped, resampled])
    rows = rows[rows["knockout"].isna() | (rows["knockout"] == QUESTION_CUT)]
    rows = rows.assign(sees_question=rows["knockout"].isna())[rows["metric"] == rows["direction"].map(OWN_KEY)]
    unpatched = rows["clean"].where(rows["direction"] == "noising", rows["corrupted"])
    rows = rows[unpatched == 1].dropna(subset="patched")
    if rows.empty:
        raise ValueError(
            "the table has no stopped run that is right unpatched; sweep the metrics answer_is_clean and "
            "answer_is_corrupted with configs/early_stop.toml, on a model that answers correctly"
        )
    keys = ["protocol", "rest", "sees_question", "kept"]
    runs = rows.groupby([*keys, "cluster_id", "pair_id", "direction"])["patched"].mean()
    # One row per pair whose denominator counts its right hosts, so that every run weighs the same.
    pairs = runs.groupby([*keys, "cluster_id", "pair_id"]).agg(numerator="sum", denominator="count").reset_index()
    trained = resampled["step_last"].max() + 1 if len(resampled) else float("nan")
    return pooled(pairs, keys).assign(trained=trained)


def _stopped(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that think some number of steps, written with their own thought."""
    chosen = table[(table["kind"] == "thought") & (table["source"] == "self") & table["n_latents"].notna()]
    return chosen.assign(rest="stopped", kept=chosen["n_latents"])


def _resampled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows where the answer reads an unrelated run's steps, from one step to the last."""
    plain = table[["layer", "step_set", "head", "freeze", "n_latents", "read_step"]].isna().all(axis=1)
    chosen = table[plain & (table["kind"] == "kv") & (table["source"] == "unrelated") & table["step"].notna()]
    chosen = chosen[chosen["step_last"] == chosen["step_last"].max()]
    return chosen.assign(rest="resampled", kept=chosen["step"])


def early_stop_curve(stops: pd.DataFrame) -> Any:
    """Accuracy by own steps kept, from `early_stops`: stopped or resampled, with and without sight of the question."""
    shown = stops.assign(
        then=stops["rest"].map(lambda rest: REST[rest][0]),
        sight=stops["sees_question"].map(lambda sees: SEES[bool(sees)][0]),
    )
    trained = shown["trained"].dropna()
    marks = [_trained_rule(int(trained.iloc[0]))] if len(trained) else []
    return dress(
        alt.layer(*marks, *_marks(shown)).properties(width=WIDTH + 60, height=240),
        heading(
            "Accuracy when a run keeps only its first k latent steps",
            "The rest is not thought, or the answer reads an unrelated run's cache entries instead, at all layers",
            "Runs that are right unpatched, both questions of each pair; bands: 95% over clusters",
            about_pooled(stops),
            width=WIDTH + 60,
        ),
    )


def _marks(shown: pd.DataFrame) -> list[Any]:
    """The bands, lines and points of `early_stop_curve`."""
    last = int(shown["kept"].max())
    x = alt.X(
        "kept:Q",
        title="own latent steps kept, k",
        axis=alt.Axis(values=list(range(last + 1)), format="d", grid=False),
        scale=alt.Scale(domain=[0, last], nice=False, padding=8),
    )
    y = alt.Y("effect:Q", title="runs that give their own key", axis=alt.Axis(format="%"),
              scale=alt.Scale(domain=[0, 1]))  # fmt: skip
    dashes = {words: dash for words, dash in SEES.values() if words in set(shown["sight"])}
    dash = alt.StrokeDash(
        "sight:N", title=None, scale=alt.Scale(domain=list(dashes), range=list(dashes.values())), legend=dashes_below()
    )
    colour = alt.Color("then:N", title=None, scale=scale_of(dict(REST.values())), legend=below(1))
    base = alt.Chart(shown).encode(x=x, color=colour)
    band = base.mark_area(opacity=0.12).encode(y="low:Q", y2="high:Q", detail="sight:N")
    lines = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash)
    points = base.mark_point(filled=True, size=40, opacity=1).encode(y=y, tooltip=tips("then", "sight", "kept"))
    return [band, lines, points]


def _trained_rule(n: int) -> Any:
    """A line at the number of steps that the model was trained with."""
    mark = alt.Chart(pd.DataFrame({"kept": [n], "words": [f"as trained (k = {n})"]})).encode(x="kept:Q")
    rule = mark.mark_rule(color=GREY, strokeDash=[2, 2])
    return rule + mark.mark_text(color="#555", align="right", baseline="bottom", dx=-4, fontSize=11).encode(
        y=alt.value(236), text="words:N"
    )
