"""Effects: how far a patch moves a run towards the pair's other run, and how far beyond an unrelated donor."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.inference import RESAMPLES, ratio_interval
from analysis.table import SITE_KEYS

OTHER_RUN = {"denoising": "clean", "noising": "corrupted"}  # denoising writes clean values into the corrupted run
SERIES = ("protocol", "direction", "source", "metric")


def effect(table: pd.DataFrame) -> pd.DataFrame:
    """Add effect = (patched − host) / (donor − host): 0 leaves the host as it was, 1 makes it the pair's other run.

    The scale is the pair's two runs whatever the source, so that unrelated donors compare with the true one. NaN where
    the two runs agree; `numerator` and `denominator` stand beside it, for pooling.
    """
    denoising = table["direction"] == "denoising"
    host = table["corrupted"].where(denoising, table["clean"])
    donor = table["clean"].where(denoising, table["corrupted"])
    numerator, denominator = table["patched"] - host, donor - host
    ratio = numerator / denominator.where(denominator != 0)
    return table.assign(numerator=numerator, denominator=denominator, effect=ratio)


def recovery(table: pd.DataFrame) -> pd.DataFrame:
    """Add recovery = (patched − corrupted) / (clean − corrupted): 0 is the corrupted run, 1 the clean one."""
    gap = table["clean"] - table["corrupted"]
    return table.assign(recovery=(table["patched"] - table["corrupted"]) / gap.where(gap != 0))


def from_other_run(table: pd.DataFrame) -> pd.Series:
    """Which rows write values of the pair's other run."""
    return table["source"] == table["direction"].map(OTHER_RUN)


def specific(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pair's other run, less what an unrelated donor does at the same place of the same pair.

    Zero means no more than any write there does. Draws are averaged; pairs without an unrelated donor are left out.
    """
    effects = effect(table)
    place = ["pair_id", "protocol", "direction", "metric", *SITE_KEYS]
    drawn = effects[effects["source"] == "unrelated"]
    if drawn.empty:
        raise ValueError(
            "the table has no rows of source 'unrelated', so specific effects are undefined; sweep them too"
        )
    control = drawn.groupby(place, dropna=False, as_index=False)["numerator"].mean()
    paired = effects[from_other_run(effects)].merge(control, on=place, suffixes=("", "_unrelated"))
    numerator = paired["numerator"] - paired["numerator_unrelated"]
    ratio = numerator / paired["denominator"].where(paired["denominator"] != 0)
    return paired.assign(numerator=numerator, effect=ratio).drop(columns="numerator_unrelated")


def has_unrelated(table: pd.DataFrame) -> bool:
    """Whether the table has unrelated donors, without which an effect has no zero line and no p."""
    return bool((table["source"] == "unrelated").any())


def specific_or_plain(table: pd.DataFrame) -> pd.DataFrame:
    """Specific effects where an unrelated donor was swept, else plain effects, of the pair's other run."""
    return specific(table) if has_unrelated(table) else effect(table[from_other_run(table)])


def pooled(effects: pd.DataFrame, by: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Pool each group's pairs: effect = Σ numerators / Σ denominators, with the 95 % interval over resampled clusters.

    Beside it `mean` and `median` of the pairs' own effects (never the headline), and how many pairs (`n`) and clusters.
    """
    if missing := [name for name in ("numerator", "denominator", *by) if name not in effects]:
        raise ValueError(f"nothing to pool: column {missing[0]!r} is missing; pass the table through effect() first")
    known = effects.dropna(subset=["numerator", "denominator"])
    sums = ["numerator", "denominator"]
    per_pair = known.groupby([*by, "cluster_id", "pair_id"], dropna=False)[sums].mean().reset_index()
    rows = []
    for key, group in per_pair.groupby(list(by), dropna=False):
        clusters = group.groupby("cluster_id")[sums].sum().to_numpy()
        low, high = ratio_interval(clusters[:, 0], clusters[:, 1], resamples, seed)
        above, below = clusters.sum(0)
        own = group["numerator"] / group["denominator"].where(group["denominator"] != 0)
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "effect": above / below if below else float("nan"),
                "low": low,
                "high": high,
                "n": len(group),
                "clusters": len(clusters),
                "mean": own.mean(),
                "median": own.median(),
            }
        )
    columns = [*by, "effect", "low", "high", "n", "clusters", "mean", "median"]
    return pd.DataFrame(rows, columns=columns).astype({name: effects[name].dtype for name in by})


def by_site(
    effects: pd.DataFrame,
    *,
    direction: str | None = None,
    metric: str = "logit_difference",
    source: str | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    """One pooled row per site × layer × step, of one direction or both; `source=None` is the pair's other run.

    `split` names a further column to keep apart, as `kind`, how the pair's questions differ.
    """
    effects = known_split(effects, split)
    chosen = effects[effects["metric"] == metric]
    if direction is not None:
        chosen = chosen[chosen["direction"] == direction]
    chosen = chosen[from_other_run(chosen)] if source is None else chosen[chosen["source"] == source]
    if chosen.empty:
        where = f"direction {direction or 'any'}, source {source or 'the other run'}"
        raise ValueError(f"the table has no rows of metric {metric!r}, {where}; it has {_offer(effects)}")
    return pooled(chosen, [*SERIES, *SITE_KEYS, *([split] if split else [])])


def known_split(table: pd.DataFrame, split: str | None) -> pd.DataFrame:
    """The rows whose value of `split` is known; ValueError where the table has no such column or no such row."""
    if split is None:
        return table
    if split not in table:
        raise ValueError(f"the table has no column {split!r} to split by; it has {', '.join(map(str, table))}")
    known = table[table[split].notna()]
    if known.empty:
        raise ValueError(f"no pair has a {split}, so there is nothing to split by; make pairs with `codi pairs make`")
    return known


def _offer(table: pd.DataFrame) -> str:
    """What a table holds, for an error's last words."""
    return "; ".join(f"{name} {', '.join(sorted(table[name].unique()))}" for name in ("metric", "direction", "source"))


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in which no route is held, no edge cut, no thought stopped, and which are read at the answer."""
    special = ("freeze", "cut", "n_latents", "read_step", "step_set")
    return table[table[list(special)].isna().all(axis=1)]


def main_protocol(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a run is about: of the latent loop, where it ran beside a control of another protocol."""
    protocols = table["protocol"].unique()
    if len(protocols) < 2:
        return table
    return table[table["protocol"] == ("latent_loop" if "latent_loop" in protocols else protocols[0])]


def layerwise(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the original experiment's sites: the residual stream of one layer at all latent steps."""
    rows = plain(table)
    one_layer = rows["layer"].notna() & (rows["layer"] == rows["layer_last"]).fillna(False)
    return rows[(rows["site"] == "resid") & one_layer & rows["step"].isna()]
