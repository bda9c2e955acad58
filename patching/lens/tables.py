"""Tables of a model's thoughts: the likeliest tokens, the ranks of known numbers, and attention.

`says`        question_id step layer rank token probability entropy: the likeliest tokens of every state
`values`      question_id cluster_id steps owner role ordinal value step layer rank probability: a number's rank there
`attention`   question_id cluster_id query layer key weight tokens: mean over heads
`questions`   question_id cluster_id question answer intermediates said correct

Step -1 is BoT, layer -1 the vector fed to a step (BoT's own vector, always the same, is left out). `owner` is `own`, or
`another`: the intermediates of another question with as many, which give the chance level. A number that is not a
single token has no rank. `steps` is 0 where no solution is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.io.run_folder import file_hashes
from codi_tracing.configs.files import read_utf8
from codi_tracing.patching.lens.questions import SolvedQuestion, TargetNumber, target_numbers
from codi_tracing.patching.provenance import digest, now, versions
from codi_tracing.patching.runs.lock import LOCK
from codi_tracing.traces.lens import Attention, Lens, answer_beginning, attention_of, logit_lens, number_tokens
from codi_tracing.traces.loop.tokens import positions_needed, question_ids
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import last_number

LENS_MANIFEST = "lens.json"


class LensTables(NamedTuple):
    """The four tables above."""

    says: pd.DataFrame
    values: pd.DataFrame
    attention: pd.DataFrame
    questions: pd.DataFrame


def lens_tables(
    model: CodiModel, questions: Sequence[SolvedQuestion], *, top: int = 10, batch_size: int = 16, seed: int = 0,
    progress: bool = False,
) -> LensTables:  # fmt: skip
    """Read every state of every question; `seed` draws the other questions of the chance level.

    Raises ValueError, before anything runs, where a question is longer than the model can read.
    """
    numbers = number_tokens(model)
    targets = target_numbers(questions, seed)
    width = max(map(len, targets), default=0)
    lengths = [len(question_ids(model, each.question)) for each in questions]
    order = sorted(range(len(questions)), key=lengths.__getitem__, reverse=True)
    need = positions_needed(model, lengths[order[0]], len(answer_beginning(model)))
    if need > model.n_positions:
        longest = questions[order[0]].question_id
        raise ValueError(f"question {longest} needs {need} positions, the model has {model.n_positions}; leave it out")
    parts: list[list[pd.DataFrame]] = [[], [], [], []]
    with tqdm(total=len(order), desc="lens", unit="question", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch, wanted = [questions[index] for index in chosen], [targets[index] for index in chosen]
            texts = [each.question for each in batch]
            padded = [[*(target.value for target in each), *[math.nan] * (width - len(each))] for each in wanted]
            lens = logit_lens(model, texts, padded, top=min(top, len(model.tokenizer)), numbers=numbers)
            frames = (
                token_rows(model, batch, lens), value_rows(batch, wanted, lens),
                attention_rows(batch, attention_of(model, texts)), question_rows(batch, lens.answers),
            )  # fmt: skip
            for part, frame in zip(parts, frames, strict=True):
                part.append(frame)
            bar.update(len(chosen))
    rank = {each.question_id: index for index, each in enumerate(questions)}
    tables = (
        pd.concat(part).sort_values("question_id", key=lambda ids: ids.map(rank), kind="stable", ignore_index=True)
        for part in parts
    )
    return LensTables(*tables)


def token_rows(model: CodiModel, batch: Sequence[SolvedQuestion], lens: Lens) -> pd.DataFrame:
    """The likeliest tokens of every state, a row each."""
    top = lens.tokens.shape[-1]
    axes = axis_columns(batch, lens.tokens.shape, ("step", "layer", "rank"))
    flat = lens.tokens.flatten().tolist()
    words = dict(zip(set(flat), model.tokenizer.batch_decode([[token] for token in set(flat)]), strict=True))
    rows = axes.assign(
        rank=axes["rank"] + 2,  # the axes begin at -1
        token=pd.array([words[token] for token in flat], dtype="str"),
        probability=lens.probabilities.flatten().double().cpu().numpy(),
        entropy=lens.entropy[..., None].expand(-1, -1, -1, top).flatten().double().cpu().numpy(),
    )
    return without_bot_input(rows)


def value_rows(batch: Sequence[SolvedQuestion], targets: Sequence[Sequence[TargetNumber]], lens: Lens) -> pd.DataFrame:
    """The rank of each number in every state, a row each; no rank where it is not a single token."""
    frames = []
    for each, own, ranks, probabilities in zip(batch, targets, lens.ranks, lens.value_probabilities, strict=True):
        for target, rank, probability in zip(own, ranks, probabilities, strict=False):  # padding comes last
            rows = axis_columns([each], (1, *rank.shape), ("step", "layer"))
            found = pd.Series(pd.array(rank.flatten().tolist(), dtype="Int64"))
            about = {"cluster_id": each.cluster_id, "steps": each.steps, **target._asdict()}
            values = {"rank": found.where(found > 0), "probability": probability.flatten().double().cpu().numpy()}
            frames.append(rows.assign(**about, **values))
    columns = ["question_id", "cluster_id", "steps", *TargetNumber._fields, "step", "layer", "rank", "probability"]
    rows = pd.concat(frames, ignore_index=True)[columns].astype({"ordinal": "Int64"})
    return without_bot_input(rows)


def attention_rows(batch: Sequence[SolvedQuestion], attention: Attention) -> pd.DataFrame:
    """The attention of each query to each group of tokens, by layer; groups that it does not see are left out."""
    count, queries, layers, groups = attention.weights.shape
    index = pd.MultiIndex.from_product(
        [[each.question_id for each in batch], attention.queries, range(layers), attention.groups],
        names=["question_id", "query", "layer", "key"],
    )
    tokens = attention.counts[:, :, None].expand(count, queries, layers, groups).flatten().cpu().numpy()
    weights = attention.weights.flatten().double().cpu().numpy()
    rows = index.to_frame(index=False).assign(weight=weights, tokens=tokens)
    clusters = rows["question_id"].map({each.question_id: each.cluster_id for each in batch})
    rows.insert(1, "cluster_id", clusters)
    return rows[rows["tokens"] > 0]


def question_rows(batch: Sequence[SolvedQuestion], answers: Sequence[str]) -> pd.DataFrame:
    """The questions, their known numbers, and the model's answers."""
    return pd.DataFrame(
        {
            "question_id": each.question_id,
            "cluster_id": each.cluster_id,
            "question": each.question,
            "intermediates": " ".join(f"{value:g}" for value in each.intermediates),
            "answer": each.answer,
            "said": text.strip(),
            "correct": last_number(text) == each.answer,
        }
        for each, text in zip(batch, answers, strict=True)
    )


def axis_columns(batch: Sequence[SolvedQuestion], shape: Sequence[int], names: Sequence[str]) -> pd.DataFrame:
    """The axes of a tensor `[question, …]` as columns, counted from -1."""
    axes = [[each.question_id for each in batch], *(range(-1, size - 1) for size in shape[1:])]
    return pd.MultiIndex.from_product(axes, names=["question_id", *names]).to_frame(index=False)


def without_bot_input(rows: pd.DataFrame) -> pd.DataFrame:
    """Drop BoT's own vector, which is the same for every question."""
    return rows[(rows["step"] >= 0) | (rows["layer"] >= 0)]


def save_lens(tables: LensTables, folder: Path, about: dict[str, Any]) -> Path:
    """Write the tables as Parquet, and last the manifest `lens.json`.

    Until then the manifest marks the folder unfinished, so that no reader mixes the tables of two runs.
    """
    write_json(folder / LENS_MANIFEST, {"finished": False})
    for name, table in tables._asdict().items():
        write_whole(folder / f"{name}.parquet", table.to_parquet(index=False))
    files = file_hashes(folder, [f"{name}.parquet" for name in tables._fields])
    write_json(folder / LENS_MANIFEST, {**about, "files": files, "finished": True})
    return folder


def open_lens_folder(folder: Path, fresh: bool = False) -> Path:
    """A folder for a lens's tables: new, empty, or of an unfinished lens; of a finished one only with `fresh`.

    ValueError for any other.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder; choose another with --out")
    others = [path for path in folder.iterdir() if not path.name.startswith(LOCK)] if folder.is_dir() else []
    if others and not (folder / LENS_MANIFEST).is_file():
        raise ValueError(f"{folder}: holds files but no {LENS_MANIFEST}; choose another with --out")
    if (folder / LENS_MANIFEST).is_file() and not _is_ours(folder / LENS_MANIFEST):
        raise ValueError(f"{folder}: its {LENS_MANIFEST} is not of codi lens; choose another folder with --out")
    if (folder / LENS_MANIFEST).is_file() and not fresh:
        try:
            unfinished = json.loads(read_utf8(folder / LENS_MANIFEST)) == {"finished": False}
        except (ValueError, RecursionError):
            unfinished = False
        if not unfinished:
            raise ValueError(f"{folder}: holds a lens already; --fresh replaces it, or choose another with --out")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / LENS_MANIFEST).is_file():
        write_json(folder / LENS_MANIFEST, {"finished": False})
    return folder


def _is_ours(path: Path) -> bool:
    """Whether this version or another wrote a lens's manifest: all have `finished`; a damaged one is replaced."""
    try:
        about = json.loads(read_utf8(path))
    except (ValueError, RecursionError):
        return True
    return isinstance(about, dict) and "finished" in about


def lens_manifest(
    model: CodiModel, file: Path, questions: Sequence[SolvedQuestion], top: int, seed: int
) -> dict[str, Any]:
    """The contents of `lens.json`: model, versions, seed, and data: the hash is of the questions as they were read."""
    return {
        "created": now(),
        "model": model.describe(),
        "versions": versions(),
        "data": {"file": file.name, "sha256": digest(questions), "questions": len(questions)},
        "top": top,
        "seeds": {"chance_level": seed},
    }
