"""Texts for a paper: methods, pairs left out and why, definitions, references."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from codi_tracing.analysis.captions import metric_noun
from codi_tracing.analysis.rows import sites_have_unrelated
from codi_tracing.analysis.statistics.inference import ALPHA
from codi_tracing.analysis.statistics.sites import SHARE_OF_CEILING
from codi_tracing.configs.vocabulary import DIRECTIONS, EXPERIMENTS, FEWEST_CLUSTERS, METRICS, SITE_KINDS, SOURCES

STATISTICS_WORDS = {
    "answered pairs": "pairs whose two unpatched runs decode their own keys. Every number is of these, unless it "
    "says otherwise.",
    "three answers": "a patched run gives the partner's answer (that of the pair's other run), keeps the host's (that "
    "of the run written into), or gives another.",
    "transfer": "(P(patched) − P(host)) / (P(partner) − P(host)), P the probability of the partner's whole answer with "
    "end of sequence: 0 leaves the host as it was, 1 makes it answer as its partner does. Pooled: sum of numerators "
    "over sum of denominators; undefined where the latter cannot be told from 0.",
    "disruption": "the same for the loss of the host's own answer: 0 keeps it, 1 loses all of it.",
    "specific transfer": "transfer from the pair's other run less transfer from an unrelated question's run, the "
    "control, paired.",
    "ceiling": "specific transfer of the whole thought: the answer phase reads the other run's cache of all latent "
    "steps and layers.",
    "graded view": "the effect on the logit difference, for changes too small to move a probability. Any write that "
    "destroys the answer moves it about half-way, so it is drawn beside the unrelated donor's, never corrected by it.",
    "critical": "specific transfer above 0 by sign flips of whole clusters with max-|t| step-down over all sites "
    "(family-wise {alpha:.0%}), its lower bound above {share:.0%} of the ceiling, and a ceiling whose lower bound is "
    "at least {low:g}.",
    "exploratory": "false discovery rate q at most {alpha:.0%} (Benjamini and Hochberg) and specific transfer above 0: "
    "a list to follow up, not a finding.",
    "rank set": "the ranks that a site may have, for all sites at once with 95% confidence, 1 the largest.",
}
OWN = re.compile(r"'[^']*'|-?\d[\d,.]*\d|-?\d")  # a reason's parts that are its pair's own: quoted answers, numbers
CODI = (
    "Shen et al. 2025, CODI: Compressing Chain-of-Thought into Continuous Space via Self-Distillation, arXiv 2502.21074"
)
PATCHING = (
    "Heimersheim and Nanda 2024, How to use and interpret activation patching, arXiv 2404.15255; Zhang and Nanda 2024, "
    "Towards Best Practices of Activation Patching, arXiv 2309.16042"
)
NNSIGHT = "Fiotto-Kaufman et al. 2024, NNsight and NDIF, arXiv 2407.14561"
EXPERIMENT_CITATIONS = {
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


def first_names(names: Sequence[str], most: int = 20) -> str:
    """The first names, and how many more the manifest has."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more, see manifest.json" if more > 0 else "")


def excluded(data: Mapping[str, Any]) -> list[tuple[str, list[tuple[int, str, str]]]]:
    """Sentences on the pairs left out, each with rows: how many, the reason, which."""
    left_out = data.get("excluded") or []
    parts = [(f"Left out: {len(left_out)}." if left_out else "No pair was left out.", reasons(left_out))]
    if failed := data.get("failed"):
        parts.append((f"Failed in the run, and without rows: {len(failed)}.", reasons(failed)))
    if lone := data.get("without_unrelated_donor"):
        pairs = ", ".join(map(str, lone))
        parts.append((f"Specific transfer leaves out pairs without an unrelated donor of equal length: {pairs}.", []))
    return parts


def reasons(left_out: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str]]:
    """How many pairs were left out for each reason, and which; reasons that differ in numbers alone count as one."""
    return [(len(group), reason, first_names([pair for pair, _ in group])) for reason, group in _by_reason(left_out)]


def _by_reason(left_out: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Pairs with their reasons, the commonest reason first, without the pairs' own parts where these differ."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for entry in left_out:
        pair, reason = str(entry["pair_id"]), str(entry["reason"]).removeprefix(f"pair {entry['pair_id']}: ")
        groups.setdefault(OWN.sub("…", reason), []).append((pair, reason))
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [(group[0][1] if len({reason for _, reason in group}) == 1 else common, group) for common, group in ordered]


def methods(manifest: Mapping[str, Any], table: pd.DataFrame) -> list[str]:
    """Paragraphs for a paper's methods section: model, data, interventions, measures, statistics, software."""
    model, config = manifest.get("model") or {}, manifest.get("config") or {}
    size = f"{model.get('n_layers', 'unknown')} layers, {model.get('n_latents', 'unknown')} latent steps"
    name = manifest.get("experiment") or "sweep"
    procedure = EXPERIMENTS[name].procedure if name in EXPERIMENTS else ""
    kinds = ", ".join(kind.noun for name, kind in SITE_KINDS.items() if (table["kind"] == name).any())
    sources = ", ".join(source.words for name, source in SOURCES.items() if (table["source"] == name).any())
    hosts = " and ".join(
        f"the {direction.host} run ({name})"
        for name, direction in DIRECTIONS.items()
        if (table["direction"] == name).any()
    )
    frozen = ", ".join(sorted(table["freeze"].dropna().unique()))
    knockout = ", ".join(sorted(table["knockout"].dropna().unique()))
    measured = ", ".join(metric_noun(metric) for metric in table["metric"].unique())
    software = version_text(manifest.get("versions"))
    return [
        f"Model. {model.get('checkpoint', 'unknown')} ({size}; {model.get('dtype', 'unknown')} on "
        f"{model.get('device', 'unknown')}), a CODI model; protocol {manifest.get('protocol', 'unknown')}.",
        " ".join(["Data.", *_about_data(manifest.get("data") or {}, table, config.get("extra_problems"))]),
        f"Interventions. {procedure} Written: {kinds}; values from {sources}; into {hosts}."
        + (f" Frozen at the host's values, in part of the runs: {frozen}." if frozen else "")
        + (f" Attention edges knocked out, in part of the runs: {knockout}." if knockout else ""),
        f"Measures. {len(table):,} values of {table['metric'].nunique()} metrics: {measured}. Logit metrics are read "
        "at the first answer token where the two answers differ, at the same position in all runs, what both answers "
        "share before it forced; decoding is greedy, nothing forced.",
        "Statistics. " + " ".join(_about_statistics(table)),
        f"Software. {software or 'Versions unknown'}; seed {config.get('seed', 'unknown')}."
        + "".join(_other_versions(manifest)),
    ]


def version_text(versions: Any) -> str:
    """Packages with their versions; empty where none are known."""
    return ", ".join(f"{name} {number}" for name, number in versions.items()) if isinstance(versions, Mapping) else ""


def _other_versions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What was computed under other versions than those above: parts of an interrupted run, shards."""
    present = manifest.get("versions")
    for versions in manifest.get("begun_under") or ():
        yield f" Batches before an interruption ran under {_changed(versions, present)}."
    for shard, under in (manifest.get("versions_of_shards") or {}).items():
        for versions in under if isinstance(under, list) else ():
            if versions != present:
                yield f" Batches of shard {shard} ran under {_changed(versions, present)}."


def _changed(versions: Any, present: Any) -> str:
    """The versions that are not the present ones."""
    if isinstance(versions, Mapping) and isinstance(present, Mapping):
        versions = {name: number for name, number in versions.items() if present.get(name) != number}
    return version_text(versions) or "unknown versions"


def _about_data(data: Mapping[str, Any], table: pd.DataFrame, extra_problems: Any) -> Iterator[str]:
    """How many pairs there were, how many are left and why."""
    yield f"{data.get('read', 'An unknown number of')} pairs were read from {data.get('pairs_file', 'a file')}."
    if extra_problems:
        yield (
            f"{extra_problems} fresh word problems joined their questions; hosts and donors were matched among all of "
            "these."
        )
    for key, what in (("excluded", "left out before the run"), ("failed", "failed in it")):
        entries = data.get(key) or []
        why = "; ".join(f"{len(group)}: {reason}" for reason, group in _by_reason(entries))
        if entries:
            yield f"{len(entries)} {what} ({why})."
    yield (
        f"{table['pair_id'].nunique()} pairs in {table['cluster_id'].nunique()} clusters, the unit of every interval "
        "and test, are in the table."
    )


def _about_statistics(table: pd.DataFrame) -> Iterator[str]:
    """Pooling, intervals, tests and their assumptions, as the code has them."""
    yield (
        "Transfer is pooled over the answered pairs (sum of numerators over sum of denominators). The unit of "
        "independence is the cluster: pairs that share a question text, on either side, or a declared source. 95% "
        "intervals of pooled ratios are jackknife-t over clusters, joined with a share's interval where most clusters "
        "are all or nothing; those of shares are Clopper–Pearson over the effective number of clusters, "
        f"(Σm)²/Σm². Below {FEWEST_CLUSTERS} clusters there are estimates alone."
    )
    if not sites_have_unrelated(table):
        yield "No unrelated donor was run at single sites: their transfer has no control, and no p-values."
        return
    donors = table.loc[table["source"] == "unrelated", ["pair_id", "source_pair"]].dropna().drop_duplicates()
    most = max(donors["source_pair"].value_counts(), default=0)
    yield (
        "The control is the same write from an unrelated question's run (equal token count, another cluster, another "
        "answer than host and partner), scored against the same two answers and paired. "
        f"{donors['pair_id'].nunique()} pairs share {donors['source_pair'].nunique()} donors, each used for at most "
        f"{most} pairs; the tests do not model that a donor is used again."
    )
    yield (
        "Family-wise p-values are from sign flips of whole clusters with max-|t| step-down over all sites of a "
        "direction. They assume that a cluster's difference between partner and control is symmetric around 0 under "
        "the null, as it is where the two are exchangeable. Rank sets are simultaneous, from step-down tests of all "
        "differences of two sites."
    )


def definitions(table: pd.DataFrame, low_ceiling: float) -> list[tuple[str, str]]:
    """The terms of the page, and the metrics of the table."""
    metrics = {name: f"{metric.definition}." for name, metric in METRICS.items() if (table["metric"] == name).any()}
    values = {"low": low_ceiling, "alpha": ALPHA, "share": SHARE_OF_CEILING}
    return [*((name, text.format(**values)) for name, text in STATISTICS_WORDS.items()), *metrics.items()]


def citations(manifest: Mapping[str, Any], table: pd.DataFrame) -> list[tuple[str, str]]:
    """Works to cite, each with its purpose."""
    experiment = manifest.get("experiment") or "sweep"
    tested = [
        ("family-wise p-values", "Westfall and Young 1993, Resampling-Based Multiple Testing; Romano and Wolf 2005, "
         "Exact and approximate stepdown methods for multiple hypothesis testing"),
        ("rank sets", "Mogstad, Romano, Shaikh and Wilhelm 2024, Inference for ranks with applications to mobility "
         "across neighbourhoods and academic achievement across countries"),
        ("the exploratory list", "Benjamini and Hochberg 1995, Controlling the false discovery rate"),
    ]  # fmt: skip
    return [
        ("the model", CODI),
        ("patching, metrics", PATCHING),
        *([EXPERIMENT_CITATIONS[experiment]] if experiment in EXPERIMENT_CITATIONS else []),
        (
            "intervals",
            "Clopper and Pearson 1934, The use of confidence or fiducial limits; Miller 1974, The jackknife: a review",
        ),
        *(tested if sites_have_unrelated(table) else []),
        ("runs inside traces", NNSIGHT),
    ]


def without_pair_lists(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest without the lists of pairs, which have a section of their own."""
    data = manifest.get("data") or {}
    return {
        **{key: value for key, value in manifest.items() if key not in ("identity_of", "shard")},
        "data": {
            key: value for key, value in data.items() if key not in ("excluded", "failed", "without_unrelated_donor")
        },
    }
