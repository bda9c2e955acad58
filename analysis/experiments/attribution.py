"""Attribution patching against exact patching: does the gradient's estimate rank the places that matter first?

The estimate is first order: (donor's activation − host's activation) · gradient of the host's logit difference (Nanda,
"Attribution Patching: Activation Patching At Industrial Scale", 2023; Syed, Rager and Conmy, arXiv 2310.10348). Where
attention saturates, or effects cancel, it overlooks places that matter (AtP*, Kramár et al. 2024, arXiv 2403.00745):
so places drawn at random are patched exactly too, and those among them that should have ranked high are counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
from scipy import stats

from codi_tracing.analysis.figures.marks import below, scale_of
from codi_tracing.analysis.figures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.labels import NOUNS, about_pooled, place_name
from codi_tracing.analysis.rows import from_other_run
from codi_tracing.analysis.statistics.effects import effect, pooled

ESTIMATE, EXACT = "logit_difference_estimate", "logit_difference"
PLACE = ["protocol", "kind", "layer", "step", "head"]
COLOURS = {"resid": BLUE, "attn": ORANGE, "mlp": GREEN, "kv": "#CC79A7", "latent": "#222222", "head": "#E69F00"}
CHOSEN = {"top": "top by estimate", "random": "drawn at random"}


class Agreement(NamedTuple):
    """How estimates agree with exact effects, over the verified places alone."""

    rank_correlation: float  # Spearman's, of signed effects; NaN where fewer than three places vary
    n: int  # verified places
    same_sign: float  # share of them; two zeros agree
    misses: tuple[str, ...]  # random checks stronger than the bar, the strongest first
    checks: int  # random checks
    bar: float  # median |exact effect| of the top; NaN where the first rank is not verified, and nothing is missed

    def __str__(self) -> str:
        rho = f"Spearman's rho {self.rank_correlation:z.2f} over n = {self.n} places"
        agree = f"{rho}, {self.same_sign:.0%} of the same sign"
        if np.isnan(self.bar):
            return f"{agree}; the place of largest estimate is not verified, so misses cannot be counted"
        missed = f"{len(self.misses)} of {self.checks} random checks missed"
        return f"{agree}; {missed} (stronger than the top's median, {self.bar:z.2f})"


def attributions(table: pd.DataFrame) -> pd.DataFrame:
    """One row per single place: its pooled `estimate`, its pooled `exact` effect (NaN where not patched), and `chosen`.

    Effects are 0 at the host, 1 at the donor, of the pair's other run, both directions together, with 95 % intervals
    over clusters. `rank` is by |estimate|, 1 the largest. `chosen` is `top` in the longest run of ranks from 1 that are
    all verified, `random` for a verified place below it, else empty.
    """
    rows = _single_places(table)
    for metric, lacking in ((ESTIMATE, "estimates"), (EXACT, "exact effects")):
        if not (rows["metric"] == metric).any():
            raise ValueError(
                f"the table has no {lacking} of single places (metric {metric}, source the pair's other run); "
                "run configs/attribution.toml"
            )
    rows = effect(rows)
    # The two directions' gaps are each other's opposite and would cancel: both are counted towards the clean run.
    sign = rows["direction"].map({"denoising": 1.0, "noising": -1.0})
    rows = rows.assign(numerator=rows["numerator"] * sign, denominator=rows["denominator"] * sign)
    estimates, exact = (_pooled_as(rows[rows["metric"] == metric], name) for metric, name in
                        ((ESTIMATE, "estimate"), (EXACT, "exact")))  # fmt: skip
    found = estimates.drop(columns=["n", "clusters"]).merge(exact, on=PLACE, how="left")
    found = found.astype({"n": "Int64", "clusters": "Int64"})  # empty where nothing was verified
    if found["exact"].isna().all():
        raise ValueError("no estimated place has an exact effect, so there is nothing to compare; verify some of them")
    order = found["estimate"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    found = found.loc[order].reset_index(drop=True)
    verified = found["exact"].notna()
    top = verified.cummin()
    chosen = pd.Series("random", index=found.index).mask(top, "top").where(verified)
    return found.assign(rank=np.arange(1, len(found) + 1), chosen=chosen)


def agreement(found: pd.DataFrame) -> Agreement:
    """Agreement of estimates with exact effects, from `attributions`.

    A miss is a random check whose |exact effect| is above the median of the top's: ranked by estimate it was passed
    over, though it is stronger than half of what was picked. (The weakest of the top would be no bar: one place that
    was overestimated, of no effect at all, would make every random check a miss.)
    """
    verified = found[found["exact"].notna()]
    top, checks = verified[verified["chosen"] == "top"], verified[verified["chosen"] == "random"]
    bar = float(top["exact"].abs().median())
    strength = checks["exact"].abs().sort_values(ascending=False, kind="stable")
    missed = found.loc[strength[strength > bar].index]
    varies = len(verified) > 2 and verified["estimate"].nunique() > 1 and verified["exact"].nunique() > 1
    rho = stats.spearmanr(verified["estimate"], verified["exact"]).statistic if varies else np.nan
    return Agreement(
        rank_correlation=float(rho),
        n=len(verified),
        same_sign=float((np.sign(verified["estimate"]) == np.sign(verified["exact"])).mean()),
        misses=tuple(_names(missed)),
        checks=len(checks),
        bar=bar,
    )


def attribution_scatter(found: pd.DataFrame) -> Any:
    """Exact effect by its estimate, from `attributions`: one point per verified place, and a line where they agree."""
    shown = found[found["exact"].notna()]
    shown = shown.assign(place=_names(shown), noun=shown["kind"].map(NOUNS), how=shown["chosen"].map(CHOSEN))
    # An estimate may be a tenth of the effect: each axis has its own range, or the points were one upright line.
    wide, tall = (_range(shown, names) for names in (["estimate"], ["exact", "exact_low", "exact_high"]))
    axis = alt.Axis(tickCount=4)
    x = alt.X("estimate:Q", title="estimated effect (0 host, 1 donor)", axis=axis, scale=alt.Scale(domain=wide))
    y = alt.Y("exact:Q", title="exact effect (0 host, 1 donor)", axis=axis, scale=alt.Scale(domain=tall))
    equal = pd.DataFrame({"at": [max(wide[0], tall[0]), min(wide[1], tall[1])]})
    colours = {NOUNS[site]: colour for site, colour in COLOURS.items() if site in set(shown["kind"])}
    shapes = alt.Scale(domain=list(CHOSEN.values()), range=["circle", "diamond"])
    base = alt.Chart(shown).encode(x=x, color=alt.Color("kind:N", title=None, scale=scale_of(colours), legend=below(2)))
    names = ("estimate", "estimate_low", "estimate_high", "exact", "exact_low", "exact_high")
    tips = ["place", "how", "rank", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in names), "n"]
    points = base.mark_point(size=55, strokeWidth=1.5, opacity=1).encode(
        y=y, shape=alt.Shape("how:N", title=None, scale=shapes, legend=below(1)), tooltip=tips
    )
    whiskers = base.mark_rule(strokeWidth=1, opacity=0.5).encode(y="exact_low:Q", y2="exact_high:Q")
    line = alt.Chart(equal).mark_line(color=GREY, strokeDash=[4, 3])
    chart = line.encode(x="at:Q", y="at:Q") + whiskers + points
    agree = agreement(found)
    named = "; ".join(agree.misses[:3]) + ("; …" if len(agree.misses) > 3 else "")
    return dress(
        chart.properties(width=WIDTH, height=WIDTH),
        heading(
            "Gradient estimates against exact effects, place by place",
            "Written: the pair's other run, at one place; on the logit difference, pooled over the directions swept",
            f"{agree}{f': {named}' if named else ''}",
            "Dashed: estimate = exact (the axes differ); whiskers: 95% over clusters",
            f"{len(shown)} of {len(found)} estimated places verified; {about_pooled(shown)}",
            width=WIDTH + 60,
        ),
    )


def _range(shown: pd.DataFrame, names: list[str]) -> list[float]:
    """An axis that holds these columns and 0, with a little room."""
    ends = [float(np.nanmin(shown[names])), 0.0, float(np.nanmax(shown[names]))]
    room = max(0.04 * (max(ends) - min(ends)), 0.01)
    return [min(ends) - room, max(ends) + room]


def _single_places(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pair's other run at one layer and one step (a latent has no layer), with nothing frozen or cut."""
    rows = table[table["kind"].isin(list(COLOURS)) & table["metric"].isin([ESTIMATE, EXACT]) & from_other_run(table)]
    rows = rows[rows[["step_set", "freeze", "knockout", "n_latents", "read_step"]].isna().all(axis=1)]
    for what in ("layer", "step"):
        last = rows[f"{what}_last"]
        rows = rows[(last.isna() | (last == rows[what])).fillna(False).astype(bool)]
    return rows[rows["step"].notna() & (rows["layer"].notna() | (rows["kind"] == "latent"))]


def _pooled_as(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Pooled effects of places under a name of their own."""
    found = pooled(rows, PLACE).drop(columns=["mean", "median"])
    return found.rename(columns={"effect": name, "low": f"{name}_low", "high": f"{name}_high"})


def _names(places: pd.DataFrame) -> list[str]:
    """Each place in words."""
    ends = places.assign(layer_last=places["layer"], step_last=places["step"])
    return [place_name(place, with_kind=True) for place in ends.to_dict("records")]
