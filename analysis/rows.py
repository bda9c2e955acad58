"""Row filters of the cells table: which rows a statistic or figure reads."""

from __future__ import annotations

import pandas as pd

from codi_tracing.analysis.table import SEGMENTS

OTHER_RUN = {"denoising": "clean", "noising": "corrupted"}  # denoising writes clean values into the corrupted run
SERIES = ("protocol", "direction", "source", "metric")


def from_other_run(table: pd.DataFrame) -> pd.Series:
    """Which rows write values of the pair's other run."""
    return table["source"] == table["direction"].map(OTHER_RUN)


def has_unrelated(table: pd.DataFrame) -> bool:
    """Whether the table has unrelated donors, without which an effect has no zero line and no p."""
    return bool((table["source"] == "unrelated").any())


def places_have_unrelated(table: pd.DataFrame) -> bool:
    """The same of layers and steps alone: the whole thought has an unrelated donor in every run."""
    return has_unrelated(table[~table["kind"].isin(SEGMENTS)])


def known_split(table: pd.DataFrame, split: str | None) -> pd.DataFrame:
    """The rows whose value of `split` is known; ValueError where the table has no such column or no such row."""
    if split is None:
        return table
    if split not in table:
        raise ValueError(f"the table has no column {split!r} to split by; it has {', '.join(map(str, table))}")
    known = table[table[split].notna()]
    if known.empty:
        raise ValueError(
            f"no pair has the field {split!r}, so there is nothing to split by; make pairs with `codi pairs make`"
        )
    return known


def _offer(table: pd.DataFrame) -> str:
    """What a table holds, for an error's last words."""
    return "; ".join(f"{name} {', '.join(sorted(table[name].unique()))}" for name in ("metric", "direction", "source"))


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in which no route is held, no edge cut, no thought stopped, and which are read at the answer."""
    special = ("freeze", "knockout", "n_latents", "read_step", "step_set")
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
    return rows[(rows["kind"] == "resid") & one_layer & rows["step"].isna()]
