"""Attribution patching against exact patching: does the gradient's estimate rank the sites of large effect first?

The estimate is first order: (donor's activation − host's activation) · gradient of the host's logit difference (Nanda,
"Attribution Patching: Activation Patching At Industrial Scale", 2023; Syed, Rager and Conmy, arXiv 2310.10348). Where
attention saturates, or effects cancel, it misses sites of large effect (AtP*, Kramár et al. 2024, arXiv 2403.00745):
so random sites are also patched exactly, and those that should have ranked high are counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
from scipy import stats

from codi_tracing.analysis.captions import about_pooled, site_name
from codi_tracing.analysis.figures.marks import below, numbers, scale_of
from codi_tracing.analysis.figures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.rows import from_other_run, one_of, plain
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.configs.vocabulary import SITE_KINDS

ESTIMATE_METRIC, EXACT_METRIC = "logit_difference_estimate", "logit_difference"
SITE_COLUMNS = ["protocol", "kind", "layer", "step", "head"]
SITE_COLOURS = {"resid": BLUE, "attn": ORANGE, "mlp": GREEN, "kv": "#CC79A7", "latent": "#222222", "head": "#E69F00"}
CHOICES = {"top": "top by estimate", "random": "random"}


class EstimateAgreement(NamedTuple):
    """Agreement of estimates with exact effects, over the verified sites alone."""

    rank_correlation: float  # Spearman's, of signed effects; NaN if fewer than three sites vary
    n: int  # verified sites
    same_sign: float  # their share; two zeros agree
    misses: tuple[str, ...]  # random checks stronger than the bar, the strongest first
    checks: int  # random checks
    bar: float  # median |exact effect| of the top sites; NaN if the first rank is not verified

    def __str__(self) -> str:
        rho = f"Spearman's rho {self.rank_correlation:z.2f} over n = {self.n} sites"
        agree = f"{rho}, {self.same_sign:.0%} of the same sign"
        if np.isnan(self.bar):
            return f"{agree}; the site of largest estimate is not verified, so misses cannot be counted"
        larger = f"{len(self.misses)} of {self.checks} random sites had a larger effect than the top sites' median"
        return f"{agree}; {larger} ({self.bar:z.2f})"


def attribution_data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per single site: its pooled `estimate`, its pooled `exact` effect (NaN if not patched), and `chosen`.

    Effects are 0 at the host, 1 at the donor, of the pair's other run, both directions together, with 95 % intervals
    over clusters. `rank` is by |estimate|, 1 the largest. `chosen` is `top` in the longest run of ranks from 1 that are
    all verified, `random` for a verified site below it, else empty.
    """
    rows = _rows_of_single_sites(table)
    for metric, missing in ((ESTIMATE_METRIC, "estimates"), (EXACT_METRIC, "exact effects")):
        if not (rows["metric"] == metric).any():
            raise ValueError(
                f"the table has no {missing} of single sites (metric {metric}, source the pair's other run); "
                "run configs/attribution.toml"
            )
    rows = effect(rows)
    # The gaps of the two directions have opposite signs and would cancel: both count towards the clean run.
    sign = rows["direction"].map({"denoising": 1.0, "noising": -1.0})
    rows = rows.assign(numerator=rows["numerator"] * sign, denominator=rows["denominator"] * sign)
    estimates, exact = (_pooled_as(rows[rows["metric"] == metric], name) for metric, name in
                        ((ESTIMATE_METRIC, "estimate"), (EXACT_METRIC, "exact")))  # fmt: skip
    sites = estimates.drop(columns=["n", "clusters"]).merge(exact, on=SITE_COLUMNS, how="left")
    sites = sites.astype({"n": "Int64", "clusters": "Int64"})  # empty if nothing was verified
    if sites["exact"].isna().all():
        raise ValueError("no estimated site has an exact effect, so there is nothing to compare; verify some of them")
    order = sites["estimate"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    sites = sites.loc[order].reset_index(drop=True)
    verified = sites["exact"].notna()
    chosen = pd.Series("random", index=sites.index).mask(verified.cummin(), "top").where(verified)
    return sites.assign(rank=np.arange(1, len(sites) + 1), chosen=chosen)


def attribution_agreement(sites: pd.DataFrame) -> EstimateAgreement:
    """Agreement of estimates with exact effects, from `attribution_data`.

    A miss is a random site whose |exact effect| is above the median of the top sites: the ranking passed it over though
    it is stronger than half of the selected sites. (Against the weakest of the top, one overestimated site without any
    effect would make every random site a miss.)
    """
    verified = sites.dropna(subset=["estimate", "exact"])
    top, checks = verified[verified["chosen"] == "top"], verified[verified["chosen"] == "random"]
    bar = float(top["exact"].abs().median())
    strength = checks["exact"].abs().sort_values(ascending=False, kind="stable")
    missed = sites.loc[strength[strength > bar].index]
    varies = len(verified) > 2 and verified["estimate"].nunique() > 1 and verified["exact"].nunique() > 1
    rho = stats.spearmanr(verified["estimate"], verified["exact"]).statistic if varies else np.nan
    return EstimateAgreement(
        rank_correlation=float(rho),
        n=len(verified),
        same_sign=float((np.sign(verified["estimate"]) == np.sign(verified["exact"])).mean()),
        misses=tuple(_names(missed)),
        checks=len(checks),
        bar=bar,
    )


def attribution_chart(sites: pd.DataFrame) -> Any:
    """Exact effect against its estimate: one point per verified site, and the line of equality."""
    shown = sites[sites["exact"].notna()]
    nouns = {kind: SITE_KINDS[kind].noun for kind in SITE_COLOURS}
    shown = shown.assign(place=_names(shown), noun=shown["kind"].map(nouns), how=shown["chosen"].map(CHOICES))
    # An estimate may be a tenth of the effect: with one range the points would form a vertical line.
    wide, tall = (_range(shown, names) for names in (["estimate"], ["exact", "exact_low", "exact_high"]))
    axis = alt.Axis(tickCount=4)
    x = alt.X("estimate:Q", title="estimated effect (0 host, 1 donor)", axis=axis, scale=alt.Scale(domain=wide))
    y = alt.Y("exact:Q", title="exact effect (0 host, 1 donor)", axis=axis, scale=alt.Scale(domain=tall))
    equal = pd.DataFrame({"at": [max(wide[0], tall[0]), min(wide[1], tall[1])]})
    colours = {nouns[kind]: colour for kind, colour in SITE_COLOURS.items() if kind in set(shown["kind"])}
    shapes = alt.Scale(domain=list(CHOICES.values()), range=["circle", "diamond"])
    base = alt.Chart(shown).encode(x=x, color=alt.Color("noun:N", title=None, scale=scale_of(colours), legend=below(2)))
    ends = (f"{name}{end}" for name in ("estimate", "exact") for end in ("", "_low", "_high"))
    tips = ["place", "how", "rank", *numbers(*ends), "n"]
    points = base.mark_point(size=55, strokeWidth=1.5, opacity=1).encode(
        y=y, shape=alt.Shape("how:N", title=None, scale=shapes, legend=below(1)), tooltip=tips
    )
    whiskers = base.mark_rule(strokeWidth=1, opacity=0.5).encode(y="exact_low:Q", y2="exact_high:Q")
    line = alt.Chart(equal).mark_line(color=GREY, strokeDash=[4, 3])
    chart = line.encode(x="at:Q", y="at:Q") + whiskers + points
    agree = attribution_agreement(sites)
    named = "; ".join(agree.misses[:3]) + ("; …" if len(agree.misses) > 3 else "")
    return dress(
        chart.properties(width=WIDTH, height=WIDTH),
        heading(
            "Gradient estimates against exact effects, site by site",
            "Written: the pair's other run, at one site; on the logit difference (graded), pooled over directions",
            f"{agree}{f': {named}' if named else ''}",
            "Dashed: estimate = exact (the axes differ); whiskers: 95% over clusters",
            f"{len(shown)} of {len(sites)} estimated sites verified; {about_pooled(shown)}",
            width=WIDTH + 60,
        ),
    )


def _range(shown: pd.DataFrame, names: list[str]) -> list[float]:
    """The range of these columns and 0, with a little room."""
    ends = [float(np.nanmin(shown[names])), 0.0, float(np.nanmax(shown[names]))]
    room = max(0.04 * (max(ends) - min(ends)), 0.01)
    return [min(ends) - room, max(ends) + room]


def _rows_of_single_sites(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pair's other run at one layer and one step (a latent has no layer), without frozen routes."""
    rows = plain(table[table["kind"].isin(list(SITE_COLOURS)) & table["metric"].isin([ESTIMATE_METRIC, EXACT_METRIC])])
    one_layer = one_of(rows, "layer") | ((rows["kind"] == "latent") & rows["layer"].isna())
    return rows[from_other_run(rows) & one_of(rows, "step") & one_layer]


def _pooled_as(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Pooled effects of sites, called `name`."""
    effects = pooled(rows, SITE_COLUMNS).drop(columns=["mean", "median"])
    return effects.rename(columns={"effect": name, "low": f"{name}_low", "high": f"{name}_high"})


def _names(sites: pd.DataFrame) -> list[str]:
    """Each site in words."""
    ends = sites.assign(layer_last=sites["layer"], step_last=sites["step"])
    return [site_name(site, with_kind=True) for site in ends.to_dict("records")]
