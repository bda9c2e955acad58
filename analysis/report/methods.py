"""What was done, for a paper: methods in sentences, pairs left out and why, definitions and references."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.html import html_table, paragraph
from codi_tracing.analysis.labels import NOUNS, metric_noun
from codi_tracing.analysis.rows import places_have_unrelated
from codi_tracing.analysis.statistics.inference import RESAMPLES
from codi_tracing.analysis.table import SITES

WORDS = {
    "effect": "(patched − host) / (donor − host): 0 leaves the run written into as it was, 1 makes it the pair's "
    "other run. Pooled: sum of numerators over sum of denominators; intervals: 95% over resampled clusters (BCa).",
    "specific effect": "effect of the pair's other run less that of an unrelated question's run, paired. Any write "
    "that destroys the answer moves the logit difference about half-way, so the unrelated donor is the zero line.",
    "ceiling": "effect of the whole thought: the answer phase reads the donor's cache of all latent steps and layers.",
    "critical": "specific effect above 0 by sign-flips of whole clusters with max-|t| step-down over all sites "
    "(family-wise 5%), its lower bound above 5% of the ceiling, and a ceiling of at least {low:g}.",
    "exploratory": "false discovery rate q at most 5% (Benjamini and Hochberg) and an effect above 0: a list to follow "
    "up, not a finding.",
    "is first": "how often the site has the largest effect in resamples of whole clusters.",
}
METRICS = {
    "logit_difference": "logit of the clean answer's token − logit of the corrupted answer's token, at the first token "
    "where the two answers differ.",
    "kl_from_corrupted": "KL(patched || corrupted) in nats: how far the patch disturbs the corrupted run. It is "
    "not a recovery; the original experiment's metric.",
    "kl_to_clean": "KL(clean || patched) in nats: 0 where the clean run's distribution is restored.",
    "rms_logit_difference": "root mean square over the vocabulary of the logits' difference to the corrupted run.",
    "prediction_change": "1 where the likeliest token is not that of the run written into, else 0.",
    "answer": "the last number of the greedily decoded answer, as upstream reads it; NaN where there is none.",
    "answer_is_clean": "1 where that number is the clean question's key, else 0.",
    "answer_is_corrupted": "1 where that number is the corrupted question's key, else 0; an answer that is neither is "
    "“other”.",
    "answer_is_hybrid": "1 where that number is the host's remaining operations applied to the donor's intermediate.",
    "js_to_clean": "Jensen–Shannon divergence to the clean run in nats, from 0 to log 2 (Lin 1991).",
    "entropy": "entropy of the next token in nats.",
    "top_overlap": "share of the clean run's ten likeliest tokens that are among the patched run's ten.",
    "edit_norm": "Euclidean norm of what was written less what stood there, over all places written.",
    "edit_cosine": "cosine of what was written and what stood there, over all places written.",
    "projection": "how far a later step's state lies from the corrupted run's towards the clean run's, in units of "
    "the state; the distance of the two runs where it is the clean run's.",
    "distance_to_clean": "Euclidean distance of a later step's state to the clean run's: 0 where it is restored.",
    "max_logit_change": "largest absolute change of a logit against the run written into.",
    "logit_difference_estimate": "the effect on logit_difference as a gradient estimates it, without a patched run.",
    "logprob_clean": "log probability (nats) of the whole clean answer, end of sequence included, forced.",
    "logprob_corrupted": "log probability (nats) of the whole corrupted answer, end of sequence included, forced.",
}
AT_EOT = (
    "the same at EoT, which predicts the answer's first word and never its number: where the original experiment read."
)
OWN = re.compile(r"'[^']*'|-?\d[\d,.]*\d|-?\d")  # what a reason says of its own pair: quoted answers and numbers
EXPERIMENTS = {
    "sweep": "Each patched run writes what stood at one place (a layer, a step, or both), or the whole thought.",
    "early_stop": "The thought was stopped after each number of steps, and the answer decoded.",
    "influence": "Each step's values were exchanged, and every later step and the answer measured.",
    "iterative": "Steps were exchanged cumulatively, from the first step on, and every following step measured.",
    "matched": "Pairs were matched by whether an intermediate of their chains, and their answers, are the same; steps "
    "of the donor's thought were written into the host, one at a time and cumulatively.",
    "original": "The latent loop was compared with the original experiment's procedure, in which pad tokens stand "
    "where the thought should be.",
    "attribution": "The effects of all places were estimated from gradients, the largest and random ones then patched.",
    "shapley": "Every subset of the latent steps was exchanged, so that each step's Shapley value is exact.",
}
SOURCES = {
    "clean": "the pair's clean run", "corrupted": "its corrupted run", "unrelated": "the run of an unrelated question "
    "of equal token count", "self": "the run itself", "zero": "zeros", "mean": "the mean over pairs",
    "step_mean": "the mean over pairs at that step", "noise": "noise as long as the pair's difference",
    "moments": "noise of the pairs' mean and variance",
}  # fmt: skip
CODI = (
    "Shen et al. 2025, CODI: Compressing Chain-of-Thought into Continuous Space via Self-Distillation, arXiv 2502.21074"
)
PATCHING = (
    "Heimersheim and Nanda 2024, How to use and interpret activation patching, arXiv 2404.15255; Zhang and Nanda 2024, "
    "Towards Best Practices of Activation Patching, arXiv 2309.16042"
)
NNSIGHT = "Fiotto-Kaufman et al. 2024, NNsight and NDIF, arXiv 2407.14561"
OF_EXPERIMENTS = {
    "attribution": (
        "estimates from gradients",
        "Nanda 2023, Attribution Patching; Syed, Rager and Conmy 2023, arXiv 2310.10348; Kramár et al. 2024, "
        "arXiv 2403.00745",
    ),
    "shapley": (
        "Shapley values, interactions",
        "Shapley 1953, A value for n-person games; Grabisch and Roubens 1999, An axiomatic approach to the concept of "
        "interaction among players in cooperative games",
    ),
    "matched": ("interchange interventions", "Geiger et al. 2022, Inducing Causal Structure, arXiv 2112.00826"),
}


def some(names: Sequence[str], most: int = 20) -> str:
    """The first names, and how many more the manifest has."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more, see manifest.json" if more > 0 else "")


def excluded(data: Mapping[str, Any]) -> list[str]:
    """How many pairs were left out and why, each by name."""
    left_out = data.get("excluded") or []
    lines = [paragraph(f"Left out: {len(left_out)}." if left_out else "No pair was left out."), *reasons(left_out)]
    if failed := data.get("failed"):
        lines += [paragraph(f"Failed in the run, and without rows: {len(failed)}."), *reasons(failed)]
    if lone := data.get("without_unrelated_donor"):
        pairs = ", ".join(map(str, lone))
        lines.append(
            paragraph(f"Specific effects leave out pairs without an unrelated donor of equal length: {pairs}.")
        )
    return lines


def reasons(left_out: Sequence[Mapping[str, Any]]) -> list[str]:
    """Pairs by the reason why they are not there, those with like reasons together."""
    rows = [(len(group), _said(shape, group), some([pair for pair, _ in group])) for shape, group in _alike(left_out)]
    return [html_table(("pairs", "reason", "which"), rows)] if rows else []


def _alike(left_out: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Pairs with their reasons, by the reasons' shape, the commonest first."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for entry in left_out:
        pair, reason = str(entry["pair_id"]), str(entry["reason"]).removeprefix(f"pair {entry['pair_id']}: ")
        alike.setdefault(OWN.sub("…", reason), []).append((pair, reason))
    return sorted(alike.items(), key=lambda item: -len(item[1]))


def _said(shape: str, group: Sequence[tuple[str, str]]) -> str:
    """A reason as it is where all say the very same, else without each pair's own numbers and answers."""
    return group[0][1] if len({reason for _, reason in group}) == 1 else shape


def methods(manifest: Mapping[str, Any], table: pd.DataFrame) -> list[str]:
    """Paragraphs for a paper's methods: model, data, interventions, measures, statistics, software."""
    model, config = manifest.get("model") or {}, manifest.get("config") or {}
    size = f"{model.get('n_layers', 'unknown')} layers, {model.get('n_latents', 'unknown')} latent steps"
    experiment = EXPERIMENTS.get(manifest.get("experiment") or "sweep", "")
    sites = ", ".join(NOUNS[site] for site in SITES if (table["kind"] == site).any())
    sources = ", ".join(SOURCES.get(source, source) for source in SOURCES if (table["source"] == source).any())
    into = {"denoising": "the corrupted run (denoising)", "noising": "the clean run (noising)"}
    hosts = " and ".join(text for direction, text in into.items() if (table["direction"] == direction).any())
    held = ", ".join(sorted(table["freeze"].dropna().unique()))
    knockout = ", ".join(sorted(table["knockout"].dropna().unique()))
    measured = ", ".join(metric_noun(metric) for metric in table["metric"].unique())
    versions = manifest.get("versions")
    made = ", ".join(f"{name} {number}" for name, number in versions.items()) if isinstance(versions, Mapping) else ""
    return [
        f"Model. {model.get('checkpoint', 'unknown')} ({size}; {model.get('dtype', 'unknown')} on "
        f"{model.get('device', 'unknown')}), a CODI model; protocol {manifest.get('protocol', 'unknown')}.",
        " ".join(["Data.", *_about_data(manifest.get("data") or {}, table, config.get("extra_problems"))]),
        f"Interventions. {experiment} Written: {sites}; values from {sources}; into {hosts}."
        + (f" Held at the run's own values, in part of the runs: {held}." if held else "")
        + (f" Attention edges cut, in part of the runs: {knockout}." if knockout else ""),
        f"Measures. {len(table):,} values of {table['metric'].nunique()} metrics: {measured}. Logit metrics are read "
        "at the first answer token where the two answers differ, at the same position in all runs, what both answers "
        "share before it forced; decoding is greedy, nothing forced.",
        f"Statistics. Effects are pooled over pairs (sum of numerators over sum of denominators); 95% intervals are "
        f"BCa over {RESAMPLES} resamples of whole clusters, percentile where BCa is undefined. "
        + (
            "Specific effects subtract an unrelated donor's at the same place, paired; their family-wise p-values are "
            "from sign flips of whole clusters with max-|t| step-down over all sites."
            if places_have_unrelated(table)
            else "No unrelated donor was run, so no specific effects and no p-values."
        ),
        f"Software. {made or 'Versions unknown'}; seed {config.get('seed', 'unknown')}.",
    ]


def _about_data(data: Mapping[str, Any], table: pd.DataFrame, fresh: Any) -> Iterator[str]:
    """How many pairs there were, how many are left and why."""
    yield f"{data.get('read', 'An unknown number of')} pairs were read from {data.get('pairs_file', 'a file')}."
    if fresh:
        yield f"{fresh} fresh word problems joined their questions; hosts and donors were matched among all of these."
    for key, what in (("excluded", "left out before the run"), ("failed", "failed in it")):
        entries = data.get(key) or []
        alike = _alike(entries)
        why = "; ".join(f"{len(group)}: {_said(shape, group)}" for shape, group in alike)
        if entries:
            yield f"{len(entries)} {what} ({why})."
    yield (
        f"{table['pair_id'].nunique()} pairs in {table['cluster_id'].nunique()} clusters, the unit of every interval "
        "and test, are in the table."
    )


def definitions(table: pd.DataFrame, low_ceiling: float) -> list[tuple[str, str]]:
    """The words that the page uses, and the metrics that the table has."""
    known = {name: text for name, text in METRICS.items() if (table["metric"] == name).any()}
    early = {name: AT_EOT for name in table["metric"].unique() if name.endswith("_at_eot")}
    return [(name, text.format(low=low_ceiling)) for name, text in (WORDS | known | early).items()]


def citations(manifest: Mapping[str, Any], table: pd.DataFrame) -> list[tuple[str, str]]:
    """What a paper that uses these numbers cites, each with what for."""
    experiment = manifest.get("experiment") or "sweep"
    tested = [
        ("family-wise p-values", "Westfall and Young 1993, Resampling-Based Multiple Testing; Romano and Wolf 2005, "
         "Exact and approximate stepdown methods for multiple hypothesis testing"),
        ("the exploratory list", "Benjamini and Hochberg 1995, Controlling the false discovery rate"),
    ]  # fmt: skip
    return [
        ("the model", CODI),
        ("patching, metrics", PATCHING),
        *([OF_EXPERIMENTS[experiment]] if experiment in OF_EXPERIMENTS else []),
        ("intervals", "Efron 1987, Better bootstrap confidence intervals"),
        *(tested if places_have_unrelated(table) else []),
        ("runs inside traces", NNSIGHT),
    ]


def listed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's own values, but for lists of pairs, which stand in sections of their own."""
    data = manifest.get("data") or {}
    return {
        **{key: value for key, value in manifest.items() if key not in ("identity_of", "shard")},
        "data": {
            key: value for key, value in data.items() if key not in ("excluded", "failed", "without_unrelated_donor")
        },
    }
