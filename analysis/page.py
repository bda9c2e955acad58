"""What the report says, from the verdict down to the definitions: each section is a function of the run's data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.markup import facts, figure, figure_row, html_table, paragraph, section, title_line
from analysis.ranking import rank_differences, winner
from analysis.style import place_name
from analysis.summary import LOW_CEILING, critical, decomposition, verdict

DEFINITIONS = {
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
    "logit_difference": "logit of the clean answer's token − logit of the corrupted answer's token, at the first token "
    "where the two answers differ.",
    "kl_from_corrupted": "KL(patched || corrupted) in nats: how far the patch disturbs the corrupted run. It is "
    "not a recovery; the original experiment's metric.",
    "kl_to_clean": "KL(clean || patched) in nats: 0 where the clean run's distribution is restored.",
    "rms_logit_difference": "root mean square over the vocabulary of the logits' difference to the corrupted run.",
    "prediction_change": "1 where the likeliest token is not that of the run written into, else 0.",
    "answer": "the last number of the greedily decoded answer; answer_is_clean and answer_is_corrupted compare it with "
    "the pair's keys, every other answer is “other”.",
}
OWN = re.compile(r"'[^']*'|-?\d[\d,.]*\d|-?\d")  # what a reason says of its own pair: quoted answers and numbers
WORDS = {True: "passed", False: "failed", None: "noted"}


class Shown(NamedTuple):
    """A figure of the page: its name and section, whether it could be drawn, and what it says (or why it could not)."""

    name: str
    section: str
    drawn: bool
    text: str


def sections(
    name: str,
    manifest: Mapping[str, Any],
    table: pd.DataFrame,
    checks: list,
    shown: Sequence[Shown],
    low_ceiling: float = LOW_CEILING,
    linked: str = "",
) -> list[str]:
    """The body of the page: the verdict, the checks, the linked view, then the figures' sections in their order."""
    by_section: dict[str, list[Shown]] = {}
    for one in shown:
        by_section.setdefault(one.section, []).append(one)
    data, model = manifest.get("data") or {}, manifest.get("model") or {}
    about = [
        manifest.get("created"),
        f"checkpoint {model.get('checkpoint', 'unknown')}",
        f"protocol {manifest.get('protocol', 'unknown')}",
        f"{data.get('used', table['pair_id'].nunique())} of {data.get('read', 'unknown')} pairs used",
    ]
    verdict_ = verdict(table, low_ceiling).sentence
    corners = figures_of(by_section.pop("Verdict", []))
    ranked = ranking(table, low_ceiling) if (manifest.get("experiment") or "sweep") == "sweep" else ""
    return [
        title_line(name, "; ".join(str(part) for part in about if part)),
        section("Verdict", paragraph(verdict_, "verdict"), *corners, routes_table(table)),
        section("Checks", checks_table(checks)),
        *([linked] if linked else []),
        *(section(title, *figures_of(figures)) for title, figures in by_section.items()),
        *([section("The largest sites", ranked)] if ranked else []),
        section("Pairs left out", *excluded(data)),
        section("Methods", *methods(manifest, table)),
        section("Definitions", html_table(("", ""), definitions(low_ceiling))),
    ]


def figures_of(shown: Sequence[Shown]) -> list[str]:
    """What the figures of a section say, then the figures beside each other."""
    said = [paragraph(one.text) for one in shown if one.drawn and one.text]
    return [*said, figure_row(*(figure(o.name) if o.drawn else paragraph(o.text, "quiet") for o in shown))]


def definitions(low_ceiling: float) -> list[tuple[str, str]]:
    """The words that the page uses."""
    return [(name, text.format(low=low_ceiling)) for name, text in DEFINITIONS.items()]


def checks_table(checks: Sequence[Mapping[str, Any]]) -> str:
    """Invariants first, then findings, each with whether it passed and its sentence."""
    ordered = sorted(checks, key=lambda check: check.get("grade") != "invariant")
    words = [WORDS[check.get("passed")] for check in ordered]
    rows = [
        (check.get("grade", ""), str(check.get("name", "")).replace("_", " "), word, check.get("sentence", ""))
        for check, word in zip(ordered, words, strict=True)
    ]
    return html_table(("grade", "check", "result", "what was found"), rows, words)


def routes_table(table: pd.DataFrame) -> str:
    """How much of the difference between the two runs goes through the thought, and how much past it."""
    try:
        parts = decomposition(table)
    except ValueError as error:
        return paragraph(f"Not shown: {error}.", "quiet")
    rows = [
        (row.part, row.contrast, f"{row.effect:.2f}", f"{row.low:.2f} to {row.high:.2f}") for row in parts.itertuples()
    ]
    return html_table(("route", "corners (question, thought)", "share of cc − xx", "95% interval"), rows)


def ranking(table: pd.DataFrame, low_ceiling: float, top: int = 5) -> str:
    """The largest specific effects, each with the uncertainty of its size and of its rank."""
    try:
        sites = critical(table, low_ceiling=low_ceiling)
        said = winner(rank_differences(table))
    except ValueError:  # the figure beside it says why
        return ""
    rows = [
        (
            place_name(row, with_kind=True),
            f"{row['effect']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['rank_low']} to {row['rank_high']} of {len(sites)}",
            f"{row['first']:.0%}",
            *(f"{row[name]:.2g}" if row["specific"] else "none" for name in ("p_fwer", "q")),
            "critical" if row["critical"] else "exploratory" if row["exploratory"] else "",
        )
        for row in sites.head(top).to_dict("records")
    ]
    tested = bool(sites["specific"].all())
    noun = "specific effect" if tested else "effect"
    heads = ("site", noun, "95% interval", "rank, 95%", "is first", "p, family-wise", "q (FDR)", "")
    said += "" if tested else " No unrelated donor was swept, so no p-values."
    return paragraph(said) + html_table(heads, rows)


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
    if not left_out:
        return []
    alike: dict[str, list[tuple[str, str]]] = {}
    for entry in left_out:
        pair, reason = str(entry["pair_id"]), str(entry["reason"]).removeprefix(f"pair {entry['pair_id']}: ")
        alike.setdefault(OWN.sub("…", reason), []).append((pair, reason))
    rows = [
        # Where all say the very same it is said as it is, else without each pair's own numbers and answers.
        (len(group), group[0][1] if len({r for _, r in group}) == 1 else shape, some([pair for pair, _ in group]))
        for shape, group in sorted(alike.items(), key=lambda item: -len(item[1]))
    ]
    return [html_table(("pairs", "reason", "which"), rows)]


def methods(manifest: Mapping[str, Any], table: pd.DataFrame) -> list[str]:
    """What was done, in words and then in the manifest's own values."""
    model, data = manifest.get("model") or {}, manifest.get("data") or {}
    size = f"{model.get('n_layers', 'unknown')} layers, {model.get('n_latents', 'unknown')} latent steps"
    text = (
        f"Model {model.get('checkpoint', 'unknown')} ({size}), protocol {manifest.get('protocol', 'unknown')}. "
        f"{table['pair_id'].nunique()} pairs in {table['cluster_id'].nunique()} clusters, "
        f"{len(table)} rows of {table['metric'].nunique()} metrics. Each patched run writes what stood at one "
        "place (a layer, a step, or both), or the whole thought, of the pair's other run, of an unrelated question of "
        "equal length, or of the run itself, into the corrupted run (denoising) or the clean one (noising). Logit "
        "metrics are read at the first answer token where the two answers differ; decoding is greedy, nothing forced."
    )
    listed = {
        **{key: value for key, value in manifest.items() if key not in ("identity_of", "slice")},
        "data": {
            key: value for key, value in data.items() if key not in ("excluded", "failed", "without_unrelated_donor")
        },
    }
    return [paragraph(text), facts(listed)]
