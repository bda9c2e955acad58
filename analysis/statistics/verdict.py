"""The verdict on the whole thought, from the two ceilings and the answers lost to unrelated thoughts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import has_unrelated, right_hosts
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, Estimate, ceiling, thought_rows

HARMFUL = 0.5  # share of runs that lose their answer to an unrelated thought
MEANINGS = {
    "the answer passes through the thought": "The answer passes through the thought",
    "redundant with the question": "The thought is redundant with the question: it suffices, but is not needed",
    "necessary, not sufficient": "The thought is necessary but not sufficient: without it the answer is lost, yet it "
    "does not carry the difference between the two questions",
    "unused": "The thought is unused: the answer depends neither on which thought it reads nor on having its own",
    "undecided": "Undecided",
}


class Verdict(NamedTuple):
    """The role of the thought: a label, a sentence with the numbers, and the numbers."""

    label: str
    sentence: str
    denoising: Estimate | None
    noising: Estimate | None
    harm: float


def harm(table: pd.DataFrame) -> float:
    """Share of runs, both directions together, that lose their own answer to an unrelated thought; NaN if not measured.

    Only runs that give their answer unpatched are counted.
    """
    rows = thought_rows(table)
    return float(1 - right_hosts(rows[rows["source"] == "unrelated"])["patched"].mean())


def verdict(table: pd.DataFrame, low_ceiling: float = LOW_CEILING) -> Verdict:
    """Unused; necessary, not sufficient; redundant with the question; or the answer passes through the thought.

    A ceiling is low below `low_ceiling`; an unrelated thought is harmful if at least half of the runs lose their answer
    to it.
    """
    try:
        denoising, noising = (ceiling(table, direction) for direction in ("denoising", "noising"))
    except ValueError as error:
        return Verdict("undecided", f"Undecided: {error}.", None, None, harm(table))
    lost = harm(table)
    rows = thought_rows(table)
    rows = rows[rows["metric"] == "logit_difference"]
    gap = (rows["clean"] - rows["corrupted"]).mean()
    numbers = (
        f"the clean thought moves the corrupted run {denoising} of the way to the clean run, the corrupted thought "
        f"moves the clean run {noising} of the way to the corrupted run, and "
        + _harm_in_words(rows, lost)
        + f" (n = {denoising.n} pairs, {denoising.clusters} clusters; 1 is all the way)."
    )
    # If the unpatched runs do not prefer their own answers, a share of their gap means nothing.
    label = _label(denoising.effect, noising.effect, lost, low_ceiling) if gap > 0 else "undecided"
    return Verdict(label, f"{MEANINGS[label]}: {numbers}", denoising, noising, lost)


def _harm_in_words(rows: pd.DataFrame, lost: float) -> str:
    """The share of answers lost, or why it is unknown."""
    if not np.isnan(lost):
        return f"an unrelated thought takes {lost:.0%} of runs' answers"
    if has_unrelated(rows):
        return "no unpatched run gives its key, so none can lose it"
    return "no unrelated thought was tried"


def _label(denoising: float, noising: float, lost: float, low: float) -> str:
    if np.isnan(denoising) or np.isnan(noising):
        return "undecided"
    if denoising >= low:
        return "the answer passes through the thought" if noising >= low else "redundant with the question"
    if noising >= low or lost >= HARMFUL:
        return "necessary, not sufficient"
    return "undecided" if np.isnan(lost) else "unused"
