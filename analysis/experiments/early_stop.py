"""Early stopping: how often a run gives its key when only its first k latent steps are its own."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import about_pooled
from codi_tracing.analysis.figures.marks import band, below, dash_by, scale_of, share_axis, tips, whole_axis
from codi_tracing.analysis.figures.style import BLUE, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.rows import QUESTION_HIDDEN, right_hosts, without
from codi_tracing.analysis.statistics.ceiling import estimate_of
from codi_tracing.analysis.statistics.effects import pooled
from codi_tracing.analysis.statistics.inference import cluster_share_intervals
from codi_tracing.analysis.statistics.verdict import percent

REST = {  # the steps from k on: words of the legend, and colour
    "stopped": ("stopped after k steps: off-distribution", ORANGE),
    "resampled": ("steps from k on resampled: in distribution", BLUE),
}
ENOUGH = 0.9  # of the answers: the steps after which so many survive are all that the answer needs
SIGHT = {  # whether the answer attends to the question: words of the legend, and dash
    True: ("answer sees the question", [1, 0]),
    False: ("question hidden: off-distribution", [4, 3]),
}


def early_stop_data(table: pd.DataFrame) -> pd.DataFrame:
    """Share of runs (`effect`) that give their own key, by own steps `kept`, `rest`, and `sees_question`.

    Both hosts of each pair count, of the runs that are right unpatched; draws of a run are averaged. `rest`: the run
    stops after its own steps (`stopped`), or the answer reads an unrelated run's steps from k on (`resampled`).
    `trained` is the model's number of steps in training, NaN if no row shows it.
    """
    stopped = table[(table["kind"] == "thought") & (table["source"] == "self") & table["n_latents"].notna()]
    if stopped.empty:
        raise ValueError(
            "the table has no rows of runs stopped early (site thought, source self, n_latents given); "
            "run configs/early_stop.toml"
        )
    entries = table[(table["kind"] == "kv") & (table["source"] == "unrelated") & table["step"].notna()]
    resampled = without(entries, "layer", "step_set", "head", "freeze", "n_latents", "read_step")
    resampled = resampled[resampled["step_last"] == resampled["step_last"].max()]
    rows = pd.concat(
        [
            stopped.assign(rest="stopped", kept=stopped["n_latents"]),
            resampled.assign(rest="resampled", kept=resampled["step"]),
        ]
    )
    rows = rows[rows["knockout"].isna() | (rows["knockout"] == QUESTION_HIDDEN)]
    rows = right_hosts(rows.assign(sees_question=rows["knockout"].isna())).dropna(subset="patched")
    if rows.empty:
        raise ValueError(
            "the table has no stopped run that is right unpatched; sweep the metrics answer_is_clean and "
            "answer_is_corrupted with configs/early_stop.toml, on a model that answers correctly"
        )
    keys = ["protocol", "rest", "sees_question", "kept"]
    runs = rows.groupby([*keys, "cluster_id", "pair_id", "direction"])["patched"].mean()
    # One row per pair whose denominator counts its right hosts, so that every run has the same weight.
    pairs = runs.groupby([*keys, "cluster_id", "pair_id"]).agg(numerator="sum", denominator="count").reset_index()
    trained = resampled["step_last"].max() + 1 if len(resampled) else float("nan")
    return pooled(pairs, keys, intervals=cluster_share_intervals).assign(trained=trained)


def early_stop_sentence(data: pd.DataFrame) -> str:
    """How many of its own steps the answer needs: the shares by steps kept, in distribution where that was run."""
    rest = "resampled" if "resampled" in set(data["rest"]) else "stopped"
    rows = data[(data["rest"] == rest) & data["sees_question"]].sort_values("kept")
    if rows.empty:
        raise ValueError("no run was stopped with the question in sight of the answer, so nothing is said of that")
    shares = {int(row["kept"]): estimate_of(row) for row in rows.to_dict("records")}
    how = "the later ones taken from unrelated runs" if rest == "resampled" else "and none after them"
    listed = ", ".join(f"{percent(share)} with {kept}" for kept, share in shares.items())
    whole = "Of the runs that are right unpatched, this many still give their key with only so many of their own "
    whole += f"latent steps, {how}: {listed} ({next(iter(shares.values())).sample})."
    if all(np.isnan(share.low) for share in shares.values()):
        return whole
    enough = [kept for kept in shares if all(shares[k].low >= ENOUGH for k in shares if k >= kept)]
    if not enough:
        return f"{whole} None of these is enough for {ENOUGH:.0%} of the answers (lower end of the interval)."
    need = f"the first {min(enough)} are" if min(enough) > 1 else "the first is" if min(enough) else "none is"
    return f"{whole} For {ENOUGH:.0%} of the answers (lower end of the interval) {need} needed."


def early_stop_chart(data: pd.DataFrame) -> Any:
    """Accuracy by own steps kept: stopped or resampled, with and without sight of the question."""
    shown = data.assign(
        then=data["rest"].map({rest: words for rest, (words, _) in REST.items()}),
        sight=data["sees_question"].map({sees: words for sees, (words, _) in SIGHT.items()}),
    )
    trained = shown["trained"].dropna()
    rule = [_trained_rule(int(trained.iloc[0]))] if len(trained) else []
    x = whole_axis("kept", int(shown["kept"].max()), "own latent steps kept, k")
    colour = alt.Color("then:N", title=None, scale=scale_of(dict(REST.values())), legend=below(1))
    base = alt.Chart(shown).encode(x=x, color=colour)
    y = share_axis("runs that give their own key")
    lines = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash_by("sight", dict(SIGHT.values()), shown["sight"]))
    points = base.mark_point(filled=True, size=40, opacity=1).encode(y=y, tooltip=tips("then", "sight", "kept"))
    return dress(
        alt.layer(*rule, band(base, 0.12, detail="sight:N"), lines, points).properties(width=WIDTH + 60, height=240),
        heading(
            "Accuracy when a run keeps only its first k latent steps",
            "The run stops there, or the answer reads an unrelated run's cache entries instead, at all layers",
            "Runs that are right unpatched, both questions of each pair; bands: 95% over clusters",
            about_pooled(data),
            width=WIDTH + 60,
        ),
    )


def _trained_rule(n: int) -> Any:
    """A line at the number of steps of training."""
    mark = alt.Chart(pd.DataFrame({"kept": [n], "words": [f"as trained (k = {n})"]})).encode(x="kept:Q")
    rule = mark.mark_rule(color=GREY, strokeDash=[2, 2])
    return rule + mark.mark_text(color="#555", align="right", baseline="bottom", dx=-4, fontSize=11).encode(
        y=alt.value(236), text="words:N"
    )
