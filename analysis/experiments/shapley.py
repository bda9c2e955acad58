"""Shapley values of latent steps: each step's share of the whole thought's effect, and which steps need each other.

The players are the steps; the value of a set of steps is the effect of writing their cache entries together. There are
two games: in `total` later steps read the written entries, in `answer only` nothing but the answer does.
"""

from __future__ import annotations

from itertools import combinations
from math import factorial
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from codi_tracing.analysis.captions import about_measure, about_pooled, what_where
from codi_tracing.analysis.figures.marks import below, reach_of, scale_of, step_matrix, tips
from codi_tracing.analysis.figures.style import BLUE, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.rows import from_other_run, without
from codi_tracing.analysis.statistics.ceiling import estimate_of
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.statistics.measures import TRANSFER, measured

GAMES = {  # the meaning of each game, and its colour
    "total": ("Total: later steps read them too", BLUE),
    "answer only": ("Answer only: nothing else reads them (K_T frozen)", ORANGE),
}
PAIR_KEYS = ["protocol", "direction", "metric", "game", "cluster_id", "pair_id"]
GAME_KEYS = PAIR_KEYS[:4]


def shapley_data(table: pd.DataFrame, metric: str = TRANSFER, direction: str = "denoising") -> pd.DataFrame:
    """Each step's exact Shapley value in units of transfer, by `game`, pooled; their sum is the whole thought's.

    A step's value is its contribution to the steps written before it, averaged over all orders (Shapley 1953, A value
    for n-person games).
    """
    values, steps = _set_values(table, metric, direction)
    return _pooled_indices(values, {(step,): ("step",) for step in range(steps)}, steps)


def shapley_interaction_data(table: pd.DataFrame, metric: str = TRANSFER, direction: str = "denoising") -> pd.DataFrame:
    """Exact Shapley interaction index of each pair of steps, `earlier` and `later`, in units of transfer, by `game`.

    Above 0 the two do more together than apart, below 0 one can replace the other (Grabisch and Roubens 1999, An
    axiomatic approach to the concept of interaction among players in cooperative games).
    """
    values, steps = _set_values(table, metric, direction)
    return _pooled_indices(values, {pair: ("earlier", "later") for pair in combinations(range(steps), 2)}, steps)


def index_weights(members: tuple[int, ...], steps: int) -> NDArray[np.float64]:
    """Weights of all sets of steps: Σ weight × value is the index of `members`, one step or a pair.

    A set is a number whose bit i is set if step i is in it.
    """
    weights = np.zeros(2**steps)
    target = sum(1 << step for step in members)
    for others in range(2**steps):
        if others & target:
            continue
        size, outside = others.bit_count(), steps - len(members) - others.bit_count()
        share = factorial(size) * factorial(outside) / factorial(steps - len(members) + 1)
        for count in range(len(members) + 1):
            for joined in combinations(members, count):
                together = others | sum(1 << step for step in joined)
                weights[together] += share * (-1) ** (len(members) - count)
    return weights


def _pooled_indices(values: pd.DataFrame, indices: dict[tuple[int, ...], tuple[str, ...]], steps: int) -> pd.DataFrame:
    """The indices of every pair of questions, pooled; `indices` names the columns of their members."""
    of_sets = values[list(range(2**steps))].to_numpy()
    named = values[[*PAIR_KEYS, "denominator"]]
    parts = [
        named.assign(numerator=of_sets @ index_weights(members, steps), **dict(zip(columns, members, strict=True)))
        for members, columns in indices.items()
    ]
    return pooled(pd.concat(parts), [*GAME_KEYS, *next(iter(indices.values()))])


def _set_values(table: pd.DataFrame, metric: str, direction: str) -> tuple[pd.DataFrame, int]:
    """One row per game and pair: a column of numerators for each set of steps, and the pair's denominator."""
    rows = measured(table, metric)
    rows = effect(rows[(rows["direction"] == direction) & from_other_run(rows)])
    rows = without(rows, "layer", "step", "head", "knockout", "n_latents", "read_step")
    played = (rows["kind"] == "kv") & rows["step_set"].notna() & (rows["freeze"].isna() | (rows["freeze"] == "K_T"))
    sets = rows[played].assign(game=rows["freeze"].isna().map({True: "total", False: "answer only"}))
    if sets.empty:
        raise ValueError(
            f"the table has no rows of sets of steps (site kv, step_set given) with metric {metric!r}, direction "
            f"{direction}; run configs/shapley.toml"
        )
    members = sets["step_set"].map(lambda words: [int(step) for step in words.split("+")])
    steps = max(map(max, members)) + 1
    sets = sets.assign(written=members.map(lambda chosen: sum(1 << step for step in set(chosen))))
    whole = rows[(rows["kind"] == "thought") & rows["freeze"].isna() & rows["step_set"].isna()]
    pairs = sets[PAIR_KEYS].drop_duplicates()
    # In both games the full set is the whole thought: no step comes after it, and the answer reads all of it.
    full = whole.merge(pairs, on=[name for name in PAIR_KEYS if name != "game"]).assign(written=2**steps - 1)
    known = pd.concat([sets[sets["written"] != 2**steps - 1], full])
    values = known.groupby([*PAIR_KEYS, "written"])["numerator"].mean().unstack()
    _require_every_set(known.groupby([*PAIR_KEYS, "written"]).size().unstack(fill_value=0), steps)
    scale = full.groupby(PAIR_KEYS)["denominator"].mean()
    values[0] = 0.0  # the unpatched host
    return values.join(scale).reset_index(), steps


def _require_every_set(counts: pd.DataFrame, steps: int) -> None:
    """ValueError that names the first set of steps missing for a pair."""
    order = sorted(range(1, 2**steps), key=lambda chosen: (chosen.bit_count(), _name(chosen, steps)))
    for chosen in order:
        missing = counts.index if chosen not in counts else counts.index[counts[chosen] == 0]
        if len(missing):
            *_, game, _cluster, pair_id = missing[0]
            what = "whole thought" if chosen == 2**steps - 1 else f"step set {_name(chosen, steps)}"
            raise ValueError(
                f"the table lacks the {what} in the game {game!r} of pair {pair_id}, and Shapley values need every "
                "set; run configs/shapley.toml"
            )


def _name(chosen: int, steps: int) -> str:
    """A set of steps as the table writes it: 0+2+5."""
    return "+".join(str(step) for step in range(steps) if chosen >> step & 1)


def shapley_sentence(values: pd.DataFrame) -> str:
    """The step with the largest share of the whole thought's transfer, in each game, and their sum."""
    said = []
    for game, rows in values.groupby("game", sort=False):
        top = rows.iloc[int(rows["effect"].argmax())]
        said.append(
            f"{GAMES[str(game)][0].partition(':')[0].lower()}, step {top['step']} with {estimate_of(top)} "
            f"of {rows['effect'].sum():z.2f}"
        )
    return (
        f"Most of the whole thought's transfer is contributed by: {'; '.join(said)} "
        f"({values['direction'].iloc[0]}, {estimate_of(top).sample}; all steps' values sum to the whole)."
    )


def shapley_chart(values: pd.DataFrame, interactions: pd.DataFrame) -> Any:
    """Bars of the values by step, beside the matrix of interactions of each game."""
    games = [game for game in GAMES if game in set(values["game"])]
    base = alt.Chart(values).encode(
        x=alt.X("step:O", title="latent step", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("game:N", sort=games),
        tooltip=tips("game", "step"),
    )
    colour = alt.Color("game:N", title=None, legend=below(2), scale=scale_of({game: GAMES[game][1] for game in games}))
    bars = base.mark_bar().encode(y=alt.Y("effect:Q", title="Shapley value (1: partner's answer)"), color=colour)
    whiskers = base.mark_rule(strokeWidth=1.5, color="#222").encode(y="low:Q", y2="high:Q")
    shares = (bars + whiskers).properties(width=250, height=210, title="each step's share")
    matrices = []
    reach = reach_of(interactions["effect"])
    for game in games:
        cells = step_matrix(
            interactions[interactions["game"] == game], "later", "earlier", reach, ("later step", "earlier step")
        )
        matrices.append(cells.properties(title=f"interaction, {game}"))
    sums = "; ".join(f"{game} {values.loc[values['game'] == game, 'effect'].sum(skipna=False):z.2f}" for game in games)
    return dress(
        alt.hconcat(shares, alt.hconcat(*matrices)).resolve_scale(color="independent"),
        heading(
            "What each latent step contributes to the whole thought's transfer, and which steps need others",
            f"Written: cache entries of every set of steps, all layers, {what_where(values['direction'].iloc[0])}",
            ". ".join(GAMES[game][0] for game in games)
            + ". Interaction: above 0 they do more together, below 0 one can replace the other",
            f"{about_measure(values['metric'].iloc[0])}; sum over steps (whole thought): {sums}; whiskers: 95% over "
            "clusters",
            about_pooled(values),
            width=WIDTH + 250 * len(games),
        ),
    )
