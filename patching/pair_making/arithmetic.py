"""Clean/corrupted pairs of word problems: one number changed, the chain recomputed, both sides answered right."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from codi_tracing.analysis.io.atomic import write_json
from codi_tracing.patching.pairs.pair import Side
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.text import last_number
from codi_tracing.traces.training.word_problems import LARGEST, WordProblem, draw_problem


class Edited(NamedTuple):
    """A problem, the same with one number changed, and that number's place (0 = the start value)."""

    clean: WordProblem
    corrupted: WordProblem
    place: int


def draw_pair(rng: random.Random) -> Edited:
    """A random problem with one number changed.

    The place is drawn so that every step of the chain is equally often the first to feel the edit.
    """
    while True:
        clean = draw_problem(rng)
        enters = rng.randrange(len(clean.values))
        place = rng.choice((0, 1)) if enters == 0 else enters + 1
        # Only the value is drawn again, not the problem: else short chains, easier to edit, would be too many.
        edits = [clean.with_number(place, value) for value in range(2, LARGEST + 1)]
        fit = [problem for problem in edits if problem.valid and problem.answer != clean.answer]
        if fit and clean.numbers.count(clean.numbers[place]) == 1:
            return Edited(clean, rng.choice(fit), place)


def candidates(seed: int, batch: int = 64) -> Iterator[list[Edited]]:
    """Batches of different pairs, forever."""
    rng, seen = random.Random(seed), set[str]()
    while True:
        drawn: list[Edited] = []
        while len(drawn) < batch:
            pair = draw_pair(rng)
            if pair.clean.question not in seen:
                seen.add(pair.clean.question)
                drawn.append(pair)
        yield drawn


def make_pairs(checkpoints: list[Path], count: int, seed: int, out: Path) -> None:
    """Write `count` pairs that every checkpoint answers correctly on both sides, reproducible from the seed."""
    models = [load_codi(folder) for folder in checkpoints]
    kept: list[Edited] = []
    tried = 0
    for drawn in candidates(seed):
        tried += len(drawn)
        right = [True] * len(drawn)
        for model in models:
            for side in ([pair.clean for pair in drawn], [pair.corrupted for pair in drawn]):
                said = record(model, [problem.question for problem in side]).answers
                good = [last_number(text) == problem.answer for text, problem in zip(said, side, strict=True)]
                right = [a and b for a, b in zip(right, good, strict=True)]
        kept += [pair for pair, both in zip(drawn, right, strict=True) if both]
        if len(kept) >= count:
            break
        if tried >= 100 * count:
            raise ValueError(
                f"only {len(kept)} of {tried} pairs are answered correctly on both sides by every checkpoint; "
                f"wanted {count}, so train longer or name fewer checkpoints"
            )
    write_json(out, [side for index, pair in enumerate(kept[:count]) for side in as_records(index, *pair)])


def as_records(pair_id: int, clean: WordProblem, corrupted: WordProblem, place: int) -> list[dict]:
    """Two records in the original experiment's schema, with the annotated chain and the edit beside it."""
    return [
        {
            "pair_id": pair_id,
            "variant": variant,
            "question": problem.question,
            "answer": problem.answer,
            "reasoning_steps": len(problem.values),
            "chain": list(problem.chain),
            "cluster_id": clean.template,
            "edited_number": place,
            "baseline_correct": True,
        }
        for variant, problem in (("clean", clean), ("corrupted", corrupted))
    ]


def arithmetic_pool(count: int, seed: int, steps: Sequence[int] = (3, 4)) -> list[tuple[str, Side]]:
    """`count` different fresh questions, each after its cluster, to find matched donors in.

    Their chains have one of these numbers of steps, each equally often but for chance.
    """
    rng, found = random.Random(seed), dict[str, tuple[str, Side]]()
    while len(found) < count:
        problem = draw_problem(rng, rng.choice(steps))
        side = Side(problem.question, float(problem.answer), len(problem.values), problem.chain)
        found.setdefault(problem.question, (problem.template, side))
    return list(found.values())
