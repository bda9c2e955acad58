"""Row filters of the cells table: which rows a statistic or figure reads, and each row's host and donor."""

from __future__ import annotations

import pandas as pd

from codi_tracing.configs.vocabulary import DIRECTIONS, SEGMENTS

SERIES = ("protocol", "direction", "source", "metric")
QUESTION_HIDDEN = "answer-question"  # the knockout that hides the question from the answer
OTHER_RUN, UNRELATED = "other run", "unrelated donor"  # the two donors of a figure


def from_other_run(table: pd.DataFrame) -> pd.Series:
    """Which rows write values of the pair's other run."""
    partners = {name: direction.partner for name, direction in DIRECTIONS.items()}
    return table["source"] == table["direction"].map(partners)


def from_run(table: pd.DataFrame) -> pd.DataFrame:
    """The rows written from the pair's other run or from an unrelated donor; column `donor` says which."""
    unrelated = table["source"] == "unrelated"
    return table.assign(donor=unrelated.map({True: UNRELATED, False: OTHER_RUN}))[unrelated | from_other_run(table)]


def host_value(table: pd.DataFrame) -> pd.Series:
    """The metric in each row's unpatched host."""
    return table["corrupted"].where(table["direction"] == "denoising", table["clean"])


def right_hosts(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose metric is whether the run gives its host's key, of hosts that give it unpatched."""
    keys = {name: f"answer_is_{direction.host}" for name, direction in DIRECTIONS.items()}
    rows = table[table["metric"] == table["direction"].map(keys)]
    return rows[host_value(rows) == 1]


def has_unrelated(table: pd.DataFrame) -> bool:
    """Whether the table has unrelated donors; without them an effect has no zero line and no p."""
    return bool((table["source"] == "unrelated").any())


def sites_have_unrelated(table: pd.DataFrame) -> bool:
    """Whether layers and steps have unrelated donors: every run has one for the whole thought."""
    return has_unrelated(table[~table["kind"].isin(SEGMENTS)])


def known_split(table: pd.DataFrame, split: str | None) -> pd.DataFrame:
    """The rows with a value of `split`; ValueError if the table has no such column or no such row."""
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


def without(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows in which all these columns are empty."""
    return table[table[list(columns)].isna().all(axis=1)]


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without frozen routes, knockouts, another number of steps or sets of steps, read at the answer."""
    return without(table, "freeze", "knockout", "n_latents", "read_step", "step_set")


def main_protocol(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the latent loop, if the table also has a control of another protocol."""
    protocols = table["protocol"].unique()
    if len(protocols) < 2:
        return table
    return table[table["protocol"] == ("latent_loop" if "latent_loop" in protocols else protocols[0])]


def single_site_rows(table: pd.DataFrame, metric: str, direction: str | None = None) -> pd.DataFrame:
    """The rows that are ranked: layers and steps, read at the answer, without knockouts, of the main protocol."""
    rows = without(main_protocol(table), "read_step", "knockout", "n_latents")
    rows = rows[(rows["metric"] == metric) & ~rows["kind"].isin(SEGMENTS)]
    return rows if direction is None else rows[rows["direction"] == direction]


def one_of(table: pd.DataFrame, column: str) -> pd.Series:
    """Which rows have a single layer or step, and no window of several."""
    return (table[column] == table[f"{column}_last"]).fillna(False).astype(bool)


def layerwise_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The original experiment's sites: the residual stream of one layer at all latent steps."""
    rows = plain(table)
    return rows[(rows["kind"] == "resid") & one_of(rows, "layer") & rows["step"].isna()]
