"""What the card of an arithmetic checkpoint reports: accuracy by number of steps, corners, interchange, single steps.

Everything is measured on fresh problems and fresh pairs from a seed, pairs answered correctly on both sides.
"""

from __future__ import annotations

import random
from typing import Any

import pandas as pd
import torch

from analysis.effects import effect, pooled
from analysis.summary import corners, verdict
from patching.arithmetic import as_records, draw_pair
from patching.engine import grid, prepare, sweep_cells
from patching.pairs import Pair, pairs_from_records
from patching.sites import THOUGHT, layerwise, prefixes, stepwise
from patching.sources import draw_unrelated, other, unrelated
from traces.model import CodiModel
from traces.problems import Problem, fresh
from traces.thought import answer_ids, encode, last_number, run, texts

METRICS = ("logit_difference", "answer", "answer_is_clean", "answer_is_corrupted")


def measure_card(model: CodiModel, problems: int = 1000, pairs: int = 500, seed: int = 20_000) -> dict[str, Any]:
    """Every figure of the card. `seed` must not be one that the checkpoint was trained on or its pairs drawn with."""
    asked = fresh(seed, problems)
    by_steps = {str(n): accuracy(model, asked, n) for n in range(model.n_latents + 2)}
    ready, _ = prepare(model, fresh_pairs(model, pairs, seed + 1))
    donors = draw_unrelated([p.pair for p in ready], [p.tokens for p in ready], seed)
    steps, upto = stepwise(model), prefixes(model)
    cells = [*grid([THOUGHT], [other, unrelated]), *grid([*layerwise(model), *steps, *upto], [other])]
    table = sweep_cells(
        model, ready, cells, donors=donors, pairs_per_batch=16, metrics=METRICS
    )  # fmt: skip
    return {
        "problems": problems,
        "accuracy_by_steps": by_steps,
        "pairs": len(ready),
        "corners": corners(table).to_dict("records"),
        "verdict": verdict(table).label,
        "interchange_accuracy": interchange_accuracy(table, {d.pair_id: d.answer for d in donors if d}),
        "unrelated_thought_gives_clean_answer": share(table, "answer_is_clean", "denoising", "unrelated"),
        "ceiling": {d: effect_of(table, "thought", d) for d in ("denoising", "noising")},
        "single_step": {
            d: [effect_of(table, "resid", d, s.step, s.step) for s in steps] for d in ("denoising", "noising")
        },
        "step_prefix": {
            d: [effect_of(table, "resid", d, 0, s.step_last) for s in upto] for d in ("denoising", "noising")
        },
        "single_layer": {
            d: [effect_of(table, "resid", d, layer=s.layer) for s in layerwise(model)] for d in ("denoising", "noising")
        },
    }


def accuracy(model: CodiModel, problems: list[Problem], n_latents: int, batch: int = 100) -> float:
    """Greedy accuracy with `n_latents` steps of thought."""
    right = 0
    prefix = torch.tensor([answer_ids(model)])
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        rows = encode(model, [[problem.question] for problem in part])
        done = run(model, rows, prefix.expand(len(part), -1), max_new_tokens=8, n_latents=n_latents)
        assert done.tokens is not None
        said = texts(model, done.tokens)[0]
        right += sum(last_number(text) == problem.answer for text, problem in zip(said, part, strict=True))
    return right / len(problems)


def fresh_pairs(model: CodiModel, count: int, seed: int) -> list[Pair]:
    """`count` new pairs, of which those answered correctly on both sides are kept."""
    rng, records = random.Random(seed), []
    for pair_id in range(count):
        records += as_records(pair_id, *draw_pair(rng))
    pairs = pairs_from_records(records)
    ready, _ = prepare(model, pairs)
    table = sweep_cells(
        model,
        ready,
        grid([THOUGHT], [other], ["denoising"]),
        pairs_per_batch=32,
        metrics=["answer_is_clean", "answer_is_corrupted"],
    )
    right = table.pivot(index="pair_id", columns="metric", values=["clean", "corrupted"])
    both = (right["clean"]["answer_is_clean"] == 1) & (right["corrupted"]["answer_is_corrupted"] == 1)
    return [pair for pair in pairs if both.get(str(pair.pair_id), False)]


def share(table: pd.DataFrame, metric: str, direction: str, source: str) -> float:
    """Share of pairs in which the exchanged thought gives that answer."""
    chosen = table[(table["metric"] == metric) & (table["direction"] == direction) & (table["source"] == source)]
    return float(chosen.loc[chosen["site"] == "thought", "patched"].mean())


def interchange_accuracy(table: pd.DataFrame, answers: dict[str, float]) -> float:
    """Share of unrelated donors whose whole thought makes the host give the donor's answer, over both hosts."""
    said = table[(table["metric"] == "answer") & (table["source"] == "unrelated") & (table["site"] == "thought")]
    return float((said["patched"] == said["source_pair"].map(answers)).mean())


def effect_of(
    table: pd.DataFrame,
    site: str,
    direction: str,
    step: int | None = None,
    step_last: int | None = None,
    layer: int | None = None,
) -> float:
    """Pooled effect on the logit difference of writing the other run there."""
    chosen = table[
        (table["metric"] == "logit_difference") & (table["site"] == site) & (table["direction"] == direction)
    ]
    chosen = chosen[chosen["source"].isin(["clean", "corrupted"])]
    for column, wanted in (("step", step), ("step_last", step_last), ("layer", layer)):
        chosen = chosen[chosen[column].isna() if wanted is None else chosen[column] == wanted]
    return float(pooled(effect(chosen), by=["site"])["effect"].iloc[0])
