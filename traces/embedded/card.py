"""Measure the two shipped checkpoints: python traces/embedded/card.py [PROBLEMS [PAIRS]]

Writes `card.json`, and the figures of README.md after its heading "Figures". Everything is measured on new problems,
and on new pairs that the model answers correctly on both sides.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.report.conclusions import share_text
from codi_tracing.analysis.statistics.corners import CORNER_ANSWERS
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.configs.vocabulary import DIRECTIONS
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sites import THOUGHT, Site, layerwise, prefixes, stepwise
from codi_tracing.patching.interventions.sources import other, unrelated
from codi_tracing.patching.pair_making.arithmetic import as_records, draw_pair
from codi_tracing.patching.pairs.donors import draw_unrelated
from codi_tracing.patching.pairs.pair import pairs_from_records
from codi_tracing.patching.pairs.selection import both_correct
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.patching.runs.checks import interchange
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.model.checkpoint import read_card
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.text import last_number
from codi_tracing.traces.training.word_problems import WordProblem, draw_problems

HERE = Path(__file__).parent
NAMES = ("thought", "bypass")
SEED = 20_000  # not that of the checkpoints' training, nor of their shipped pairs
FIGURES = "## Figures\n"


def main(problems: str = "1000", pairs: str = "1000") -> None:
    """Write the card of both checkpoints."""
    card = {name: measure_card(load_codi(name), int(problems), int(pairs)) for name in NAMES}
    write_json(HERE / "card.json", card)
    about = (HERE / "README.md").read_text(encoding="utf-8").partition(FIGURES)[0]
    recipes = {name: read_card(HERE / name).provenance for name in NAMES}
    write_whole(HERE / "README.md", (about + FIGURES + figures_text(card, recipes)).encode())


def measure_card(model: CodiModel, problems: int, pairs: int, seed: int = SEED) -> dict[str, Any]:
    """All figures of one checkpoint."""
    asked = draw_problems(seed, problems)
    ready = new_pairs(model, pairs, seed + 1)
    donors = draw_unrelated(ready, seed)
    grids = {"step": stepwise(model), "steps up to": prefixes(model), "layer": layerwise(model)}
    sites = list(dict.fromkeys(site for grid in grids.values() for site in grid))
    cells = [*make_cells([THOUGHT], [other, unrelated]), *make_cells(sites, [other])]
    results = Results(sweep_cells(model, ready, cells, donors=donors, pairs_per_batch=16))
    swept = by_site(effect(measured(results.table)))
    return {
        "problems": problems,
        "accuracy_by_steps": {str(n): greedy_accuracy(model, asked, n) for n in range(model.n_latents + 2)},
        "pairs": len(ready),
        "verdict": results.summary["verdict"],
        "corners": results.corners.to_dict("records"),
        "interchange_accuracy": interchange(results.table, donors)[0].value,
        "transfer": {
            name: {direction: [transfer_at(swept, direction, site) for site in grid] for direction in DIRECTIONS}
            for name, grid in grids.items()
        },
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


def transfer_at(swept: pd.DataFrame, direction: str, site: Site) -> float:
    """The pooled transfer of one site."""
    rows = swept[(swept["direction"] == direction) & (swept["kind"] == site.kind)]
    last = site.step if site.step_last is None else site.step_last
    for name, value in (("layer", site.layer), ("step", site.step), ("step_last", last)):
        rows = rows[rows[name].isna() if value is None else rows[name] == value]
    return float(rows["effect"].iloc[0])


def figures_text(card: dict[str, dict[str, Any]], recipes: dict[str, dict[str, Any]]) -> str:
    """The figures and recipes in Markdown."""
    first = next(iter(card.values()))
    counts = ", ".join(f"{name}: {figures['pairs']}" for name, figures in card.items())
    parts = [
        f"\nMeasured by `python traces/embedded/card.py` on {first['problems']} new problems, and on new pairs that",
        f"the model answers correctly on both sides ({counts}). Two numbers are denoising / noising.\n",
        "Accuracy after so many latent steps (trained with 6):\n",
        markdown(
            ["steps", *first["accuracy_by_steps"]],
            [[name, *(f"{v:.1%}" for v in figures["accuracy_by_steps"].values())] for name, figures in card.items()],
        ),
        "The whole thought exchanged: specific transfer, disruption by an unrelated thought, and how often an",
        "unrelated thought brings its own answer:\n",
        markdown(
            ["", "verdict", "specific transfer", "disruption", "interchange accuracy"],
            [
                [
                    name,
                    figures["verdict"]["label"],
                    " / ".join(f"{numbers[way]['effect']:z.2f}" for way in DIRECTIONS),
                    f"{numbers['disruption']['effect']:z.2f}",
                    f"{figures['interchange_accuracy']:.1%}",
                ]
                for name, figures in card.items()
                for numbers in [figures["verdict"]["numbers"]]
            ],
        ),
        "The answers in the four corners, and with an unrelated thought:\n",
        markdown(
            ["", "question", "thought", "clean answer", "corrupted answer", "another"],
            [
                [name, corner["question"], corner["thought"]]
                + [share_text(corner[f"answer_{a}"], corner[f"low_{a}"], corner[f"high_{a}"]) for a in CORNER_ANSWERS]
                for name, figures in card.items()
                for corner in figures["corners"]
            ],
        ),
        "Transfer from the residual stream: all layers of one step, of steps 0 to k, and one layer at all steps:\n",
        *(
            markdown(
                [head, *map(str, range(len(first["transfer"][head]["denoising"])))],
                [
                    [name, *(" / ".join(f"{v:z.2f}" for v in both) for both in zip(*found.values(), strict=True))]
                    for name, found in ((name, figures["transfer"][head]) for name, figures in card.items())
                ],
            )
            for head in first["transfer"]
        ),
        "## Recipes\n\n```json\n" + json.dumps(recipes, indent=2) + "\n```\n",
    ]
    return "\n".join(parts)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
