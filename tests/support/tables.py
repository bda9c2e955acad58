"""Tables of cells with known effects."""

import re

import numpy as np
import pandas as pd

from codi_tracing.analysis.table import COLUMNS, check_table

OTHER = {"denoising": "clean", "noising": "corrupted"}


def cell(pair, direction, source, site, metric, patched, clean, corrupted, layer=None, cluster=None) -> dict:
    """One row of a table."""
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair),
        "cluster_id": f"cluster {pair if cluster is None else cluster}",
        "protocol": "latent_loop",
        "direction": direction,
        "source": source,
        "source_pair": "99" if source == "unrelated" else str(pair),
        "draw": 0 if source == "unrelated" else None,
        "kind": site,
        "layer": layer,
        "layer_last": layer,
        "metric": metric,
        "patched": patched,
        "clean": clean,
        "corrupted": corrupted,
    }


def experiment(
    layers=(0.8, 0.0), thought=(0.9, 0.9), unrelated=0.3, loses=1.0, pairs=40, noise=0.1, seed=0, size=1, control=0.0
):
    """A sweep with known effects: of each layer, of the whole thought in both directions, and of unrelated donors.

    Effects are on the logit difference and, independently drawn, transfer; `unrelated` is an unrelated donor's effect
    on the logit difference, `control` its transfer. An unrelated thought destroys the answer of a share `loses` of the
    pairs; `size` pairs share a cluster. Every pair is answered; a run with a positive logit difference answers as the
    clean run, which the probabilities of single runs need not agree with.
    """
    rng, of_probabilities = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    rows = []
    for pair in range(pairs):
        clean, corrupted = rng.uniform(2, 6), -rng.uniform(2, 6)
        likely, unlikely = of_probabilities.uniform([0.9, 0.0], [1.0, 0.1])
        for direction, whole in zip(OTHER, thought, strict=True):
            host, donor = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
            own = "corrupted" if direction == "denoising" else "clean"
            sites = [("resid", layer, OTHER[direction], true) for layer, true in enumerate(layers)]
            sites += [("resid", layer, "unrelated", unrelated) for layer in range(len(layers))]
            sites += [("thought", None, OTHER[direction], whole), ("thought", None, "unrelated", unrelated)]
            for site, layer, source, true in [*sites, ("thought", None, "self", 0.0)]:
                moved = true + (noise * rng.standard_normal() if source != "self" else 0)
                patched = host + moved * (donor - host)
                where = {"layer": layer, "cluster": pair // size}
                rows.append(cell(pair, direction, source, site, "logit_difference", patched, clean, corrupted, **where))
                for metric in ("kl_from_corrupted", "rms_logit_difference"):  # how far from the corrupted run
                    runs = (abs(patched - corrupted), clean - corrupted, 0.0)
                    rows.append(cell(pair, direction, source, site, metric, *runs, **where))
                changed = (float(patched * host < 0), float(host != clean), float(host != corrupted))
                rows.append(cell(pair, direction, source, site, "prediction_change", *changed, **where))
                answer = "clean" if patched > 0 else "corrupted"
                if source == "unrelated":
                    answer = "other" if pair < loses * pairs else own
                number = {"clean": 1.0, "corrupted": 2.0, "other": 3.0}
                rows.append(cell(pair, direction, source, site, "answer", number[answer], 1.0, 2.0, **where))
                # The host loses as much as the partner gains; an unrelated donor destroys what it does not keep.
                carried = (true if source != "unrelated" else control) + (
                    noise * of_probabilities.standard_normal() if source != "self" else 0
                )
                lost = float(answer != own) if source == "unrelated" else carried
                for key in ("clean", "corrupted"):
                    start, end = (unlikely, likely) if key != own else (likely, unlikely)
                    share = start + (carried if key != own else lost) * (end - start)
                    runs = (share, *((likely, unlikely) if key == "clean" else (unlikely, likely)))
                    rows.append(cell(pair, direction, source, site, f"probability_{key}", *runs, **where))
                for key in ("clean", "corrupted"):
                    runs = (float(answer == key), float(key == "clean"), float(key == "corrupted"))
                    for name in ("answer_is", "gives"):
                        rows.append(cell(pair, direction, source, site, f"{name}_{key}", *runs, **where))
    return check_table(pd.DataFrame(rows))


def one_row(**values) -> pd.DataFrame:
    """A table of one cell of one metric."""
    row = dict.fromkeys(COLUMNS) | {
        "pair_id": "7",
        "cluster_id": "ducks",
        "protocol": "latent_loop",
        "direction": "denoising",
        "source": "clean",
        "source_pair": "7",
        "kind": "resid",
        "layer": 3,
        "layer_last": 3,
        "metric": "logit_difference",
        "patched": 1.0,
        "clean": 2.0,
        "corrupted": -2.0,
    }
    return pd.DataFrame([row | values])


def layers(means: dict[int, float], spread: float, pairs: int = 66, shared: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Effects of layers with a mean and a standard deviation over pairs; `shared` of it is the pair's own."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((pairs, len(means) + 1))
    noise = (noise - noise.mean(0)) / noise.std(0, ddof=1)
    rows = []
    for pair in range(pairs):
        for place, (layer, mean) in enumerate(means.items(), 1):
            moved = mean + spread * ((1 - shared) * noise[pair, place] + shared * noise[pair, 0])
            rows.append(cell(pair, "denoising", "clean", "resid", "logit_difference", moved, 1.0, 0.0, layer=layer))
        rows.append(cell(pair, "denoising", "clean", "thought", "logit_difference", 0.9, 1.0, 0.0))
    return check_table(pd.DataFrame(rows))


RIGHT, WRONG = 0.98, 0.01  # the probabilities of both answers in an unpatched run


def outcomes(writes: dict, clusters=None, right=True, answers=None) -> pd.DataFrame:
    """A table of probabilities and answers from the outcome of each write.

    `writes` maps (layer or None for the whole thought, source) to outcomes of pairs, `"p"` (the partner's answer),
    `"h"` (the host's) or `"o"` (another), or to probabilities of the partner's and the host's answer `[pair, 2]`, or to
    a dict of either by direction. `source` is `other`, `unrelated` or `noise`. `clusters` names each pair's cluster;
    `right` says of which pairs both unpatched runs decode their keys.
    """
    first = next(iter(writes.values()))
    count = len(next(iter(first.values())) if isinstance(first, dict) else first)
    clusters = range(count) if clusters is None else clusters
    right = [right] * count if isinstance(right, bool) else right
    rows = []
    for direction, partner in OTHER.items():
        host = "corrupted" if partner == "clean" else "clean"
        for (layer, source), outcome in writes.items():
            of_pairs = outcome[direction] if isinstance(outcome, dict) else outcome
            for pair, (one, cluster) in enumerate(zip(of_pairs, clusters, strict=True)):
                moved = (
                    {"p": (RIGHT, WRONG), "h": (WRONG, RIGHT), "o": (WRONG, WRONG)}[one]
                    if isinstance(one, str)
                    else one
                )
                probability = dict(zip((partner, host), moved, strict=True))
                gives = next((run for run, p in probability.items() if p > 0.5), "another")
                kind, name = "thought" if layer is None else "resid", partner if source == "other" else source
                where = {"layer": layer, "cluster": cluster}
                for run, own in (("clean", (RIGHT, WRONG)), ("corrupted", (WRONG, RIGHT))):
                    values = {
                        f"probability_{run}": (probability[run], *own),
                        f"gives_{run}": (float(gives == run), *map(round, own)),
                    }
                    values[f"answer_is_{run}"] = tuple(value * right[pair] for value in values[f"gives_{run}"])
                    for metric, runs in values.items():
                        rows.append(cell(pair, direction, name, kind, metric, *map(float, runs), **where))
    return check_table(pd.DataFrame(rows))


def as_transfer(table: pd.DataFrame) -> pd.DataFrame:
    """The table with transfer equal to its effects on the logit difference, every pair answered.

    The logit difference stands for the probability of the clean answer, its negative for that of the corrupted one:
    an effect is a ratio, so that the unit does not matter. Runs answer by its sign.
    """
    read = table[table["metric"] == "logit_difference"]
    runs = ["patched", "clean", "corrupted"]
    parts = [table[~table["metric"].str.match("probability|gives|answer_is")]]
    for run, sign in (("clean", 1.0), ("corrupted", -1.0)):
        values = sign * read[runs]
        parts.append(read.assign(metric=f"probability_{run}", **values))
        right = {"clean": float(run == "clean"), "corrupted": float(run == "corrupted")}
        for name in ("gives", "answer_is"):
            parts.append(read.assign(metric=f"{name}_{run}", **right, patched=(values["patched"] > 0).astype(float)))
    return check_table(pd.concat(parts, ignore_index=True))


def without_intervals(sentence: str) -> str:
    """A sentence without the intervals in it, which tests of the statistics cover."""
    return re.sub(r" \[[-0-9.]+, [-0-9.]+\]", "", sentence)
