"""Clean/corrupted pairs of word problems: one number changed, the chain recomputed, both sides answered correctly."""

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
from codi_tracing.traces.training.word_problems import LARGEST_NUMBER, WordProblem, draw_problem


class ProblemPair(NamedTuple):
    """A problem, the same with one number changed, and that number's index (0 = the start value)."""

    clean: WordProblem
    corrupted: WordProblem
    edited_number: int


def draw_pair(rng: random.Random) -> ProblemPair:
    """A random problem with one number changed, drawn so that the first step it affects is uniform over the chain."""
    while True:
        clean = draw_problem(rng)
        step = rng.randrange(len(clean.values))
        edited = rng.choice((0, 1)) if step == 0 else step + 1
        # Only the value is drawn again, not the problem: else short chains, easier to edit, would be too many.
        edits = [clean.with_number(edited, value) for value in range(2, LARGEST_NUMBER + 1)]
        fit = [problem for problem in edits if problem.valid and problem.answer != clean.answer]
        if fit and clean.numbers.count(clean.numbers[edited]) == 1:
            return ProblemPair(clean, rng.choice(fit), edited)


def draw_batches(seed: int, batch: int = 64) -> Iterator[list[ProblemPair]]:
    """Endless batches of pairs with different clean questions."""
    rng, seen = random.Random(seed), set[str]()
    while True:
        drawn: list[ProblemPair] = []
        while len(drawn) < batch:
            pair = draw_pair(rng)
            if pair.clean.question not in seen:
                seen.add(pair.clean.question)
                drawn.append(pair)
        yield drawn


def write_arithmetic_pairs(checkpoints: list[Path], count: int, seed: int, out: Path) -> None:
    """Write `count` pairs that every checkpoint answers correctly on both sides, reproducible from the seed."""
    models = [load_codi(folder) for folder in checkpoints]
    kept: list[ProblemPair] = []
    tried = 0
    for drawn in draw_batches(seed):
        tried += len(drawn)
        problems = [problem for pair in drawn for problem in (pair.clean, pair.corrupted)]
        questions = [problem.question for problem in problems]
        wrong = {
            problem.question
            for model in models
            for text, problem in zip(record(model, questions).answers, problems, strict=True)
            if last_number(text) != problem.answer
        }
        kept += [pair for pair in drawn if wrong.isdisjoint((pair.clean.question, pair.corrupted.question))]
        if len(kept) >= count:
            break
        if tried >= 100 * count:
            raise ValueError(
                f"only {len(kept)} of {tried} pairs are answered correctly on both sides by every checkpoint; "
                f"expected {count}, so train longer or name fewer checkpoints"
            )
    write_json(out, [side for index, pair in enumerate(kept[:count]) for side in as_records(index, *pair)])


def as_records(pair_id: int, clean: WordProblem, corrupted: WordProblem, edited_number: int) -> list[dict]:
    """Two records in the original experiment's schema, with the annotated chain and the index of the edited number."""
    return [
        {
            "pair_id": pair_id,
            "variant": variant,
            "question": problem.question,
            "answer": problem.answer,
            "reasoning_steps": len(problem.values),
            "chain": list(problem.chain),
            "cluster_id": clean.template,
            "edited_number": edited_number,
            "baseline_correct": True,
        }
        for variant, problem in (("clean", clean), ("corrupted", corrupted))
    ]


def arithmetic_pool(count: int, seed: int, steps: Sequence[int] = (3, 4)) -> list[tuple[str, Side]]:
    """`count` different new questions with their clusters; each has one of these numbers of steps, drawn uniformly."""
    rng, pool = random.Random(seed), dict[str, tuple[str, Side]]()
    while len(pool) < count:
        problem = draw_problem(rng, rng.choice(steps))
        side = Side(problem.question, float(problem.answer), len(problem.values), problem.chain)
        pool.setdefault(problem.question, (problem.template, side))
    return list(pool.values())
