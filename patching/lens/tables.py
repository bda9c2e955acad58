"""What a model's thoughts say, as tables: the likeliest tokens, where known numbers rank, and where attention goes.

`says`        question_id step layer rank token probability entropy: the likeliest tokens of every state
`values`      question_id cluster_id steps owner role ordinal value step layer rank probability: a number's place there
`attention`   question_id cluster_id query layer key weight tokens: mean over heads
`questions`   question_id cluster_id question answer intermediates said correct

Step -1 is BoT, layer -1 what a step was fed (BoT's own vector, always the same, is left out). `owner` is `own`, or
`another`: the intermediates of another question with as many, which say how often a number is found by chance. A
number that is no single token has no rank. `steps` is 0 where no solution is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.patching.lens.questions import Sought, Worked, look_for
from codi_tracing.patching.provenance import file_digest, now, versions
from codi_tracing.traces.lens import Attention, Lens, answer_beginning, attention_of, logit_lens, number_tokens
from codi_tracing.traces.loop.tokens import positions_needed, question_ids
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import last_number

ABOUT = "lens.json"


class LensTables(NamedTuple):
    """The four tables above."""

    says: pd.DataFrame
    values: pd.DataFrame
    attention: pd.DataFrame
    questions: pd.DataFrame


def lens_tables(
    model: CodiModel, worked: Sequence[Worked], *, top: int = 10, batch_size: int = 16, seed: int = 0,
    progress: bool = False,
) -> LensTables:  # fmt: skip
    """Read every state of every question; `seed` draws whose intermediates are the chance level.

    Raises ValueError, before anything runs, where a question is longer than the model can read.
    """
    numbers = number_tokens(model)
    sought = look_for(worked, seed)
    width = max(map(len, sought), default=0)
    lengths = [len(question_ids(model, each.question)) for each in worked]
    order = sorted(range(len(worked)), key=lengths.__getitem__, reverse=True)
    need = positions_needed(model, lengths[order[0]], len(answer_beginning(model)))
    if need > model.n_positions:
        which = worked[order[0]].question_id
        raise ValueError(f"question {which} needs {need} positions, the model has {model.n_positions}; leave it out")
    parts: list[list[pd.DataFrame]] = [[], [], [], []]
    with tqdm(total=len(order), desc="lens", unit="question", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            asked, known = [worked[index] for index in batch], [sought[index] for index in batch]
            questions = [each.question for each in asked]
            filled = [[*(one.value for one in each), *[math.nan] * (width - len(each))] for each in known]
            lens = logit_lens(model, questions, filled, top=min(top, len(model.tokenizer)), numbers=numbers)
            frames = (
                says_of(model, asked, lens), values_of(asked, known, lens),
                attention_rows(asked, attention_of(model, questions)), questions_of(asked, lens.answers),
            )  # fmt: skip
            for part, frame in zip(parts, frames, strict=True):
                part.append(frame)
            bar.update(len(batch))
    place = {each.question_id: index for index, each in enumerate(worked)}
    return LensTables(*(in_order(pd.concat(part, ignore_index=True), place) for part in parts))


def says_of(model: CodiModel, asked: Sequence[Worked], lens: Lens) -> pd.DataFrame:
    """The likeliest tokens of every state, a row each."""
    count, positions, layers, top = lens.tokens.shape
    places = places_of(asked, (count, positions, layers, top), ("step", "layer", "rank"))
    flat = lens.tokens.flatten().tolist()
    words = dict(zip(set(flat), model.tokenizer.batch_decode([[token] for token in set(flat)]), strict=True))
    rows = places.assign(
        rank=places["rank"] + 2,  # the axes begin at -1
        token=pd.array([words[token] for token in flat], dtype="str"),
        probability=lens.probabilities.flatten().double().cpu().numpy(),
        entropy=lens.entropy[..., None].expand(-1, -1, -1, top).flatten().double().cpu().numpy(),
    )
    return rows[told(rows)]


def values_of(asked: Sequence[Worked], known: Sequence[Sequence[Sought]], lens: Lens) -> pd.DataFrame:
    """Where each number ranks in every state, a row each; no rank where it is no token."""
    frames = []
    for each, sought, ranks, shares in zip(asked, known, lens.ranks, lens.value_probabilities, strict=True):
        for one, rank, share in zip(sought, ranks, shares, strict=False):  # behind the sought ones stands filling
            places = places_of([each], (1, *rank.shape), ("step", "layer"))
            found = pd.array(rank.flatten().tolist(), dtype="Int64")
            about = {"cluster_id": each.cluster_id, "steps": each.steps, **one._asdict()}
            frames.append(
                places.assign(
                    **about, rank=pd.Series(found).where(found > 0), probability=share.flatten().double().cpu().numpy()
                )
            )
    columns = ["question_id", "cluster_id", "steps", *Sought._fields, "step", "layer", "rank", "probability"]
    rows = pd.concat(frames, ignore_index=True)[columns].astype({"ordinal": "Int64"})
    return rows[told(rows)]


def attention_rows(asked: Sequence[Worked], found: Attention) -> pd.DataFrame:
    """How much attention each query pays each group of tokens, layer by layer; groups that it does not see left out."""
    count, queries, layers, groups = found.weights.shape
    index = pd.MultiIndex.from_product(
        [[each.question_id for each in asked], found.queries, range(layers), found.groups],
        names=["question_id", "query", "layer", "key"],
    )
    tokens = found.counts[:, :, None].expand(count, queries, layers, groups).flatten().cpu().numpy()
    rows = index.to_frame(index=False).assign(weight=found.weights.flatten().double().cpu().numpy(), tokens=tokens)
    clusters = rows["question_id"].map({each.question_id: each.cluster_id for each in asked})
    rows.insert(1, "cluster_id", clusters)
    return rows[rows["tokens"] > 0]


def questions_of(asked: Sequence[Worked], said: Sequence[str]) -> pd.DataFrame:
    """The questions, what is known of them, and what the model answered."""
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
        for each, text in zip(asked, said, strict=True)
    )


def places_of(asked: Sequence[Worked], shape: Sequence[int], names: Sequence[str]) -> pd.DataFrame:
    """The axes of a tensor `[question, …]` as columns, counted from -1."""
    axes = [[each.question_id for each in asked], *(range(-1, size - 1) for size in shape[1:])]
    return pd.MultiIndex.from_product(axes, names=["question_id", *names]).to_frame(index=False)


def told(rows: pd.DataFrame) -> pd.Series:
    """Which rows tell something of the question: not what is fed at BoT."""
    return (rows["step"] >= 0) | (rows["layer"] >= 0)


def in_order(frame: pd.DataFrame, place: dict[str, int]) -> pd.DataFrame:
    """The rows in the order of the questions."""
    return frame.sort_values("question_id", key=lambda ids: ids.map(place), kind="stable", ignore_index=True)


def save_lens(tables: LensTables, folder: Path, about: dict[str, Any]) -> Path:
    """Write the tables as Parquet, and last `lens.json`, which says what was read by which model and versions.

    Until then it says that the folder is not finished, so that half of another lens is never taken for a whole one.
    """
    write_json(folder / ABOUT, {"finished": False})
    for name, table in tables._asdict().items():
        write_whole(folder / f"{name}.parquet", table.to_parquet(index=False))
    write_json(folder / ABOUT, {**about, "finished": True})
    return folder


def open_folder(folder: Path) -> Path:
    """A folder that a lens may be written to: new, empty, or a lens's own. ValueError for any other."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, wanted a folder; choose another with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise ValueError(f"{folder}: holds files but no {ABOUT}; choose another with --out")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT).is_file():
        write_json(folder / ABOUT, {"finished": False})  # from the first moment it says what it is
    return folder


def described_lens(model: CodiModel, file: Path, worked: Sequence[Worked], top: int, seed: int) -> dict[str, Any]:
    """What `lens.json` says."""
    return {
        "created": now(),
        "model": model.describe(),
        "versions": versions(),
        "data": {"file": file.name, "sha256": file_digest(file), "questions": len(worked)},
        "top": top,
        "seeds": {"chance_level": seed},
    }
