"""The verdict on the whole thought, read from intervals: does the answer follow it, need it, or neither?

It rests on three numbers with their intervals: the specific transfer of the whole thought in either direction, and the
disruption by an unrelated question's thought. The first rule that fits decides (`label_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import from_other_run, has_unrelated, main_protocol
from codi_tracing.analysis.statistics.ceiling import (
    NONE,
    Estimate,
    ceiling,
    estimate_of,
    thought_rows,
    unrelated_disruption,
)
from codi_tracing.analysis.statistics.effects import CLOSED_CONTROLS, CONTROLS, pooled_shares
from codi_tracing.analysis.statistics.inference import too_few
from codi_tracing.analysis.statistics.measures import given_answers, right_runs, three_answers
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS

MUCH, LITTLE = 0.5, 0.2  # bounds of an interval: most of the answer, and hardly any of it
CHANCE = 0.1  # upper bound of the accuracy on open answers, below which nothing is concluded
MEANINGS = {
    "carried": "Carried: the answer follows the thought",
    "one direction only": "One direction only: the thought carries the answer {strong} and not {weak}",
    "partly carried": "Partly carried: part of the answers follow the thought",
    "needed, not carried": "Needed, not carried: an unrelated thought destroys the answer, but the answer does not "
    "follow the other run's thought",
    "unused": "Unused: the answer neither follows the thought nor needs its own",
    "no label": "No label: the numbers fit no single description",
    "undecided": "Undecided, because {reason}",
}


class Closed(NamedTuple):
    """Closed answers: the number of options, and the share of the commonest one among the keys."""

    options: int
    commonest: float


class Verdict(NamedTuple):
    """The role of the thought: a label, the sentence that explains it, and its numbers."""

    label: str
    sentence: str
    denoising: Estimate  # specific transfer of the whole thought
    noising: Estimate
    disruption: Estimate  # by an unrelated thought
    accuracy: Estimate  # share of unpatched runs that give their key
    shares: dict[str, dict[str, Estimate]]  # direction → partner, host, another

    def is_high(self, low_ceiling: float) -> bool:
        """Whether the ceiling's lower bound is at least `low_ceiling` in both directions."""
        return bool(self.denoising.low >= low_ceiling and self.noising.low >= low_ceiling)


def label_of(
    denoising: Estimate, noising: Estimate, disruption: Estimate, accuracy: Estimate, closed: Closed | None = None
) -> tuple[str, str]:
    """The label, and the reason where it is `undecided`."""
    if reason := undecided(denoising, noising, disruption, accuracy, closed):
        return "undecided", reason
    both = (denoising, noising)
    if all(s.low >= MUCH for s in both):
        return "carried", ""
    if any(a.low >= MUCH and b.high < MUCH for a, b in (both, both[::-1])):
        return "one direction only", ""
    if all(s.low > LITTLE for s in both):
        return "partly carried", ""
    if all(s.high <= LITTLE for s in both) and disruption.low >= MUCH:
        return "needed, not carried", ""
    if all(s.high <= LITTLE for s in (*both, disruption)):
        return "unused", ""
    names = ("transfer, denoising", "transfer, noising", "disruption by an unrelated thought")
    reasons = [
        f"the interval of {name}, {estimate}, contains {' and '.join(f'{bound:g}' for bound in contained)}"
        for name, estimate in zip(names, (*both, disruption), strict=True)
        if (contained := [bound for bound in (LITTLE, MUCH) if estimate.low <= bound <= estimate.high])
    ]
    return ("undecided", "; ".join(reasons)) if reasons else ("no label", "")


def undecided(
    denoising: Estimate, noising: Estimate, disruption: Estimate, accuracy: Estimate, closed: Closed | None
) -> str:
    """Why nothing can be concluded; empty where something can."""
    if accuracy.high < CHANCE and closed is None:
        return f"the model answers {percent(accuracy)} of the questions correctly, an interval below {CHANCE:.0%}"
    if closed is not None and accuracy.low <= closed.commonest:
        return (
            f"the model answers {percent(accuracy)} correctly, and the commonest of {closed.options} options is right "
            f"in {closed.commonest:.0%}"
        )
    if min(denoising.n, noising.n) == 0:
        return (
            "no pair has both its unpatched runs right and an unrelated donor of equal length (the control)"
            if accuracy.effect > 0
            else "the model gives no question its key"
        )
    fewest = min(denoising, noising, disruption, key=lambda estimate: (estimate.clusters, estimate.n))
    if fewest.clusters < FEWEST_CLUSTERS or fewest.n < FEWEST_CLUSTERS:
        if fewest.clusters >= FEWEST_CLUSTERS:
            return f"{fewest.n} answered pairs with a control are fewer than the {FEWEST_CLUSTERS} needed"
        return f"of the answered pairs with a control (n = {fewest.n}), {too_few(fewest.clusters)}"
    if not all(np.isfinite([s.low, s.high]).all() for s in (denoising, noising, disruption)):
        return "the probabilities of a pair's two answers do not differ between its two runs"
    return ""


def verdict(table: pd.DataFrame, closed: Closed | None = None) -> Verdict:
    """The verdict of a table: what its whole thoughts carry, what they break, and which answers they give."""
    controls = CONTROLS if closed is None else CLOSED_CONTROLS
    reason, numbers, right = "", (NONE, NONE, NONE), NONE
    shares: dict[str, dict[str, Estimate]] = {}
    try:
        right, shares = accuracy(table), answer_shares(table)
        if has_unrelated(thought_rows(table)):
            numbers = (
                ceiling(table, "denoising", controls), ceiling(table, "noising", controls), unrelated_disruption(table),
            )  # fmt: skip
        else:
            reason = "no pair has an unrelated donor, so there is no control"
    except ValueError as error:
        reason = str(error)
    label, why = ("undecided", reason) if reason else label_of(*numbers, right, closed)
    return Verdict(label, _sentence(label, why, numbers, right, shares), *numbers, right, shares)


def _sentence(
    label: str,
    reason: str,
    numbers: Sequence[Estimate],
    right: Estimate,
    shares: dict[str, dict[str, Estimate]],
) -> str:
    """The verdict in words, with its shares and numbers, each with its own n."""
    denoising, noising, disruption = numbers
    strong, weak = ("denoising", "noising") if denoising.low >= MUCH else ("noising", "denoising")
    parts = [MEANINGS[label].format(strong=strong, weak=weak, reason=reason) + "."]
    followed = [(f"{percent(answers['partner'])} {way}", answers["partner"]) for way, answers in shares.items()]
    if followed:
        parts.append(f"The answer follows the other run's thought in {with_samples(followed, ' and ')}.")
    if denoising.n or noising.n:
        named = [(f"{denoising} denoising", denoising), (f"{noising} noising", noising)]
        named.append((f"an unrelated thought destroys {disruption} of the answer", disruption))
        parts.append(f"Specific transfer: {with_samples(named, ', ')}.")
    if right.n:
        parts.append(f"Unpatched, {percent(right)} of the answers are right ({right.sample}, both questions of each).")
    return " ".join(parts)


def with_samples(named: Sequence[tuple[str, Estimate]], joint: str) -> str:
    """Texts and their estimates' samples, each once where it is the same for all."""
    if len({estimate.sample for _, estimate in named}) == 1:
        return f"{joint.join(text for text, _ in named)} ({named[0][1].sample})"
    return joint.join(f"{text} ({estimate.sample})" for text, estimate in named)


def accuracy(table: pd.DataFrame) -> Estimate:
    """The share of unpatched runs that decode their keys, both questions of each pair with an exchanged thought."""
    rows = thought_rows(table)
    if rows.empty:
        raise ValueError("the table has no rows of site 'thought', so there is no verdict on it; sweep that site too")
    sides = pd.concat(right_runs(rows), axis=1).mean(axis=1).rename("right")
    clusters = main_protocol(table).drop_duplicates("pair_id").set_index("pair_id")["cluster_id"]
    rows = sides.to_frame().join(clusters).reset_index()
    return share_of(rows, rows["right"])


def share_of(rows: pd.DataFrame, values: pd.Series) -> Estimate:
    """The share of rows of which a value, 0 to 1, holds, over pairs."""
    return estimate_of(pooled_shares(rows.assign(all="all"), values, ["all"]).iloc[0])


def answer_shares(table: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """The three answers of the host with its partner's whole thought, by direction, on the answered pairs.

    Where no pair is answered, on all pairs whose two runs answer differently.
    """
    for answered in (True, False):
        rows = thought_rows(given_answers(table, answered))
        rows = rows[from_other_run(rows)]
        if len(rows):
            break
    if rows.empty:
        return {}
    shares = three_answers(rows, ["direction"])
    return {
        str(row["direction"]): {
            answer: Estimate(row[answer], row[f"low_{answer}"], row[f"high_{answer}"], row["n"], row["clusters"])
            for answer in ("partner", "host", "another")
        }
        for row in shares.to_dict("records")
    }


def percent(share: Estimate) -> str:
    """A share and its interval in per cent."""
    if np.isnan(share.effect):
        return "an unknown share"
    between = "" if np.isnan(share.low) else f" [{100 * share.low:.0f}, {100 * share.high:.0f}]"
    return f"{100 * share.effect:.0f} %{between}"
