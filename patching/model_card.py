"""Measure and write the model card of an arithmetic checkpoint: accuracy by number of steps, corners, single steps.

All figures are measured on new problems, and on new pairs that the model answers correctly on both sides.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.statistics.corners import corners
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.statistics.verdict import verdict
from codi_tracing.configs.vocabulary import DIRECTIONS
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sites import THOUGHT, layerwise, prefixes, stepwise
from codi_tracing.patching.interventions.sources import other, unrelated
from codi_tracing.patching.pair_making.arithmetic import as_records, draw_pair
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import pairs_from_records
from codi_tracing.patching.pairs.selection import both_correct
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.model.checkpoint import read_card
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.text import last_number
from codi_tracing.traces.training.word_problems import WordProblem, draw_problems

CARD_METRICS = ("logit_difference", "answer", "answer_is_clean", "answer_is_corrupted")


def measure_card(model: CodiModel, problems: int = 1000, pairs: int = 500, seed: int = 20_000) -> dict[str, Any]:
    """All figures of the card. `seed` must differ from those of the checkpoint's training and of its shipped pairs."""
    asked = draw_problems(seed, problems)
    by_steps = {str(n): greedy_accuracy(model, asked, n) for n in range(model.n_latents + 2)}
    ready = new_pairs(model, pairs, seed + 1)
    donors = draw_unrelated(ready, seed)
    layers, steps, upto = layerwise(model), stepwise(model), prefixes(model)
    cells = [*make_cells([THOUGHT], [other, unrelated]), *make_cells([*layers, *steps, *upto[1:]], [other])]
    table = sweep_cells(model, ready, cells, donors=donors, pairs_per_batch=16, metrics=CARD_METRICS)
    return {
        "problems": problems,
        "accuracy_by_steps": by_steps,
        "pairs": len(ready),
        "corners": corners(table).to_dict("records"),
        "verdict": verdict(table).label,
        "interchange_accuracy": interchange_accuracy(table, donors),
        "unrelated_thought_gives_clean_answer": share(table, "answer_is_clean", "denoising", "unrelated"),
        "ceiling": {d: effect_of(table, "thought", d) for d in DIRECTIONS},
        "single_step": {d: [effect_of(table, "resid", d, s.step, s.step) for s in steps] for d in DIRECTIONS},
        "step_prefix": {d: [effect_of(table, "resid", d, 0, s.step_last) for s in upto] for d in DIRECTIONS},
        "single_layer": {d: [effect_of(table, "resid", d, layer=s.layer) for s in layers] for d in DIRECTIONS},
    }


def greedy_accuracy(model: CodiModel, problems: list[WordProblem], n_latents: int) -> float:
    """Greedy accuracy with `n_latents` latent steps."""
    questions = [problem.question for problem in problems]
    texts = answers(model, questions, n_latents=n_latents, batch_size=100, max_new_tokens=8)
    right = [last_number(text) == problem.answer for text, problem in zip(texts, problems, strict=True)]
    return sum(right) / len(right)


def new_pairs(model: CodiModel, count: int, seed: int) -> list[TokenizedPair]:
    """Of `count` new pairs those that the model answers correctly on both sides."""
    rng = random.Random(seed)
    records = [record for pair_id in range(count) for record in as_records(pair_id, *draw_pair(rng))]
    return both_correct(model, tokenize_pairs(model, pairs_from_records(records))[0], max_new_tokens=12)[0]


def share(table: pd.DataFrame, metric: str, direction: str, source: str) -> float:
    """Share of pairs in which the exchanged thought gives that answer."""
    chosen = table[(table["metric"] == metric) & (table["direction"] == direction) & (table["source"] == source)]
    return float(chosen.loc[chosen["kind"] == "thought", "patched"].mean())


def interchange_accuracy(table: pd.DataFrame, donors: Sequence[Sequence[Donor]]) -> float:
    """Share of unrelated donors whose whole thought makes the host give the donor's answer, over both hosts."""
    answers = {donor.pair_id: donor.answer for drawn in donors for donor in drawn}
    rows = table[(table["metric"] == "answer") & (table["source"] == "unrelated") & (table["kind"] == "thought")]
    return float((rows["patched"] == rows["source_pair"].map(answers)).mean())


def effect_of(
    table: pd.DataFrame,
    kind: str,
    direction: str,
    step: int | None = None,
    step_last: int | None = None,
    layer: int | None = None,
) -> float:
    """Pooled effect on the logit difference of writing the partner's value at one site."""
    rows = table[(table["metric"] == "logit_difference") & table["source"].isin(["clean", "corrupted"])]
    rows = rows[(rows["kind"] == kind) & (rows["direction"] == direction)]
    for column, value in (("step", step), ("step_last", step_last), ("layer", layer)):
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    return float(pooled(effect(rows), by=["kind"])["effect"].iloc[0])


def write_model_card(folder: Path, names: tuple[str, ...] = ("thought", "bypass"), **options: int) -> Path:
    """Measure the checkpoints `folder/<name>` and write `card.json` and the model card `README.md` beside them."""
    figures = {name: measure_card(load_codi(folder / name), **options) for name in names}
    write_json(folder / "card.json", figures)
    recipes = {name: read_card(folder / name).provenance for name in names}
    return write_whole(folder / "README.md", card_text(figures, recipes).encode())


def card_text(figures: dict[str, dict[str, Any]], recipes: dict[str, dict[str, Any]]) -> str:
    """The model card in Markdown: the models, their training, and every measured figure."""
    names = list(figures)
    first = figures[names[0]]
    steps = list(first["accuracy_by_steps"])
    accuracies = [[n, *[f"{v:.1%}" for v in figures[n]["accuracy_by_steps"].values()]] for n in names]
    counts = ", ".join(f"{n}: {figures[n]['pairs']}" for n in names)
    exchanged = ["interchange_accuracy", "unrelated_thought_gives_clean_answer"]
    parts = [
        CARD_HEAD,
        f"## Figures\n\nMeasured by `codi card` on {first['problems']} fresh problems, and on fresh pairs",
        f"that the model answers correctly on both sides ({counts}).",
        "Effects are pooled, on the logit difference, denoising / noising.\n",
        "Accuracy after so many latent steps (trained with 6):\n",
        _table(["steps", *steps], accuracies),
        "Whole thought exchanged:\n",
        _table(
            ["", "ceiling", "interchange accuracy", "unrelated thought gives the clean answer", "verdict"],
            [[n, _both(f["ceiling"]), *[f"{f[e]:.1%}" for e in exchanged], f["verdict"]] for n, f in figures.items()],
        ),
        "The four corners, and both questions with an unrelated thought (logit difference, then shares of answers):\n",
        _table(
            ["", "question", "thought", "logit difference", "clean answer", "corrupted answer", "other"],
            [
                [n, c["question"], c["thought"], f"{c['logit_difference']:.2f}"]
                + [f"{c[f'answer_{key}']:.1%}" for key in ("clean", "corrupted", "other")]
                for n, f in figures.items()
                for c in f["corners"]
            ],
        ),
        "Effect of the residual stream at all layers of one step, of steps 0 to k, and of one layer at all steps:\n",
        *(_effects(figures, key, head) for key, head in EFFECTS.items()),
        "## Recipes\n\n```json\n" + json.dumps(recipes, indent=2) + "\n```\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _effects(figures: dict[str, dict[str, Any]], key: str, head: str) -> str:
    sites = range(len(next(iter(figures.values()))[key]["denoising"]))
    rows = [[n, *[_both({d: f[key][d][i] for d in DIRECTIONS}) for i in sites]] for n, f in figures.items()]
    return _table([head, *map(str, sites)], rows)


def _both(effects: dict[str, float]) -> str:
    return f"{effects['denoising']:.2f} / {effects['noising']:.2f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


EFFECTS = {"single_step": "step", "step_prefix": "steps up to", "single_layer": "layer"}
CARD_HEAD = """\
# Two CODI models over one base

Small models, trained by this project's own code, on which the whole instrument can be tried in a minute. They have the
same task, the same base and (nearly) the same accuracy, and opposite causal stories: `thought` answers through its
latent thought, `bypass` answers past it. **That the ceiling of `thought` is high is a design property of this model,
not a finding about CODI.**

- `base/`: a Llama of 4 layers (d 64, 4 heads, 2 key-value heads), trained from scratch on word problems with written
  chain of thought (`<<7+5=12>>`) and, in 70 % of the examples, with the chain's bare results (`7 12 24`); then frozen.
- `thought/`, `bypass/`: LoRA on all seven linear layers of a block, projection, BoT and EoT; six latent steps.
- Task: stories of two to four dependent additions and subtractions of integers below 50, with names, objects and
  several phrasings. In 70 % of them the chain cannot be composed while reading: the start value is told last, or the
  days are told in another order than they follow one another. (Since only sums and differences occur, the changes could
  be added up in any order; nothing forces a model to follow the chain.) One token per word and number.
- Inference is standard CODI for both: nothing is hidden from the answer.

What was supervised, beyond CODI's own three terms. `bypass`: nothing. `thought`: question and BoT were hidden from the
answer phase, by attention mask, in a random share of the training examples; and for the first part of the training a
cross-entropy read each step's intermediate result off that step's output (start value, then one result per step, then
end of sequence; chains of three begin one step late, so that not all answers become known at the same step), with a
weight that fell to zero. So `thought` was shown a timetable, and that its steps follow one is no discovery.

Not for use as calculators, nor as evidence about larger models.
"""
