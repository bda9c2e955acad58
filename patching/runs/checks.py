"""Invariants checked before every sweep, and findings about the model.

*Invariants* hold in every deterministic model; if one fails, the instrument is broken. *Findings* describe the model:
they never stop a run, they open the report and decide which words it may use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, Estimate
from codi_tracing.analysis.statistics.measures import given_answers, three_answers
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.analysis.statistics.verdict import percent, share_of
from codi_tracing.configs.vocabulary import DEFAULT_METRICS
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sites import THOUGHT, Site, layerwise, resid
from codi_tracing.patching.interventions.sources import itself, noise, other, unrelated
from codi_tracing.patching.metrics import Reading
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import Pair
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.traces.model.codi_model import CodiModel

EXACT = 1e-5  # a logit change up to this counts as none
UNITS = 128  # unpatched runs of one forward may differ by so many rounding units of the largest logit


class Check(NamedTuple):
    """One check: its grade (`invariant` or `finding`), whether it passed, the measured value, and a sentence."""

    name: str
    grade: str
    passed: bool | None
    value: float | None
    sentence: str


def check_checkpoint(model: CodiModel, pairs: Sequence[Pair], seed: int = 0) -> list[Check]:
    """Run the checks on the usable pairs: one small sweep."""
    ready, excluded = tokenize_pairs(model, pairs)
    if not ready:
        raise ValueError(f"none of the {len(pairs)} pairs is usable; the first reason is: {excluded[0][1]}")
    donors = draw_unrelated(ready, seed)
    return [*invariants(model, ready, donors), *findings(model, ready, donors)]


def invariants(
    model: CodiModel, ready: Sequence[TokenizedPair], donors: Sequence[Sequence[Donor]], limit: int = 16
) -> list[Check]:
    """Load report, self-patch, never-fed site, KL; on `limit` pairs, since they hold for every pair or for none."""
    ready, donors = ready[:limit], donors[:limit]
    never_fed = resid(model.n_layers - 1, model.n_latents - 1)
    cells = [
        *make_cells([*layerwise(model), THOUGHT, never_fed], [itself]),
        *make_cells([never_fed], [other]),
        *make_cells(layerwise(model), [other]),
    ]
    metrics = ["max_logit_change", largest_logit, "kl_from_corrupted", "kl_to_clean"]
    table = sweep_cells(model, ready, cells, donors=donors, metrics=metrics)
    change = table[table["metric"] == "max_logit_change"]
    own = change[change["source"] == "self"]
    # Runs at different positions sum in different orders, and the latent steps amplify the rounding: a patch changes
    # nothing if it changes no more than that.
    at_last = (change["step"] == never_fed.step) & (change["layer"] == never_fed.layer)
    spread = float(own.loc[at_last | (own["kind"] == "thought"), "patched"].max())
    rounding = (
        UNITS * torch.finfo(model.dtype).eps * float(table.loc[table["metric"] == "largest_logit", "patched"].max())
    )
    allowed = max(EXACT, 4 * spread)
    unchanged = float(own["patched"].max())
    unfed = float(change.loc[at_last & (change["source"] != "self"), "patched"].max())
    kl = float(table.loc[table["metric"].str.startswith("kl_"), ["patched", "clean", "corrupted"]].min().min())
    loaded = []
    if model.loaded is not None:  # a deployment's is compared by `codi remote check`
        landed, expected = model.loaded.landed, model.loaded.expected
        sentence = f"LoRA landed on {landed} of {expected} linear layers; projection, BoT and EoT are complete."
        loaded = [Check("load_report", "invariant", landed == expected, landed / expected, sentence)]
    return [
        *loaded,
        Check("unpatched_spread", "invariant", spread <= max(EXACT, rounding), spread,
              f"The same unpatched run in different cells of a forward differs by at most {spread:.1e} in any logit "
              f"(allowed {max(EXACT, rounding):.1e})."),
        Check("self_patch", "invariant", unchanged <= allowed, unchanged,
              f"Writing a run's own values at every layer, and its own thought, changes no logit by more than "
              f"{unchanged:.1e} (allowed {allowed:.1e})."),
        Check("never_fed_site", "invariant", unfed <= allowed, unfed,
              f"The last step's output is never fed back: writing the other run's residual there "
              f"(layer {never_fed.layer}, step {never_fed.step}) changes no logit by more "
              f"than {unfed:.1e} (allowed {allowed:.1e})."),
        Check("kl_not_negative", "invariant", kl >= -1e-6, kl,
              f"The smallest KL divergence is {kl:.1e} (allowed -1e-06)."),
    ]  # fmt: skip


def findings(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    low_ceiling: float = LOW_CEILING,
) -> list[Check]:
    """Accuracy, the verdict on the whole thought, interchange with unrelated thoughts, first against last layer."""
    ends = [resid(0), resid(model.n_layers - 1)]
    cells = [
        *make_cells([THOUGHT], [other, unrelated]),
        *make_cells(ends, [other]),
        *make_cells([Site("resid")], [noise]),
    ]
    table = sweep_cells(model, ready, cells, donors=donors, metrics=DEFAULT_METRICS)
    judged = Results(table, low_ceiling).verdict
    right = judged.accuracy
    return [
        Check("accuracy", "finding", right.effect >= 0.5, right.effect,
              f"The unpatched model answers {percent(right)} of the questions correctly ({right.sample}, both "
              "questions of each)."),
        Check("verdict", "finding", judged.is_high(low_ceiling), known_number(judged.denoising), judged.sentence),
        *interchange(table, donors),
        noise_finding(table),
        first_against_last(table, model.n_layers),
    ]  # fmt: skip


def known_number(estimate: Estimate) -> float | None:
    """The estimate, or None where it is unknown."""
    return None if estimate.effect != estimate.effect else estimate.effect


def largest_logit(reading: Reading) -> Tensor:
    """Largest absolute logit of the host, to which rounding errors are proportional."""
    return reading.host.abs().amax(-1)


def interchange(table: pd.DataFrame, donors: Sequence[Sequence[Donor]]) -> list[Check]:
    """With an unrelated question's thought: how often a host gives that question's answer, beside chance."""
    rows = table[(table["source"] == "unrelated") & (table["kind"] == "thought") & (table["metric"] == "answer")]
    if rows.empty:
        return [Check("interchange_accuracy", "finding", None, None,
                      "No pair has an unrelated donor of equal token count: there is no control.")]  # fmt: skip
    own = rows["source_pair"].map({donor.pair_id: donor.answer for drawn in donors for donor in drawn})
    share = share_of(rows, (rows["patched"] == own).astype(float))
    # Chance: any other donor's answer, in place of its own.
    frequency = own.value_counts(normalize=True)
    chance = float(rows["patched"].map(frequency).fillna(0.0).mean())
    return [
        Check("interchange_accuracy", "finding", None, share.effect,
              f"An unrelated question's whole thought makes a run give that question's answer in {percent(share)} "
              f"(both directions; {share.sample}); by chance, {chance:.0%}."),
    ]  # fmt: skip


def noise_finding(table: pd.DataFrame) -> Check:
    """With noise of equal norm at all layers and steps: the three answers of both hosts."""
    given = given_answers(table, answered=False)
    given = given[given["source"] == "noise"]
    if given.empty:
        return Check("noise", "finding", None, None, "No pair's two runs answer differently, so noise says nothing.")
    shares = three_answers(given.assign(all="all"), ["all"]).iloc[0]
    count = f"n = {shares['n']} pairs, both directions"
    return Check(
        "noise", "finding", bool(shares["partner"] <= 0.1), float(shares["partner"]),
        f"With noise as long as the other run's residual stream, at all layers and steps, runs give the other run's "
        f"answer in {shares['partner']:.0%} and keep their own in {shares['host']:.0%} ({count}).",
    )  # fmt: skip


def first_against_last(table: pd.DataFrame, n_layers: int) -> Check:
    """Whether patching the first and the last layer differ, as they do if the loop runs."""
    clean = table[(table["direction"] == "denoising") & (table["source"] == "clean") & (table["kind"] == "resid")]
    kl = clean[clean["metric"] == "kl_from_corrupted"]
    by_pair = kl.pivot(index="pair_id", columns="layer", values="patched")
    first, last = by_pair[0], by_pair[n_layers - 1]
    gap = float((first - last).abs().mean())
    return Check(
        "first_and_last_layer", "finding", gap > 1e-6, gap,
        f"Mean KL(patched || corrupted) is {first.mean():.3g} nats at the first layer, {last.mean():.3g} at the last.",
    )  # fmt: skip
