"""Inputs of a plan: the model's sizes and the tokenized pairs, or assumed ones where files are missing.

No weight is read, and torch is imported only for a checkpoint that exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from codi_tracing.configs.model_shapes import guessed_shape, known_shapes, read_shape, shape_of_base
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine.model_size import ModelSize, size_of_model, size_of_shape
from codi_tracing.patching.pairs.donors import Donor
from codi_tracing.patching.pairs.pair import Pair, Side, load_pairs
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.patching.pairs.validity import split_usable

if TYPE_CHECKING:
    from codi_tracing.traces.model.codi_model import CodiModel

# Assumed: the original experiment's number of pairs, a word problem's length, "The answer is:" and a blank.
ASSUMED_PAIRS, TOKENS, FORCED = 66, 70, 5
MAX_OPTION = 10_000  # of options that multiply cells or pairs
ASSUMED_PAIR = Pair(0, "", Side("", 0.0), Side("", 1.0))


class PlanInputs(NamedTuple):
    """A model's sizes, the pairs to patch with their donors, all usable pairs, and what was assumed."""

    size: ModelSize
    size_source: str
    ready: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    everyone: list[TokenizedPair]
    model: CodiModel | None  # without weights; None: the pairs are assumed ones
    assumptions: list[str]


def load_inputs(
    config: RunConfig, pairs: int | None = None, tokens: int | None = None, shape: str | None = None
) -> PlanInputs:
    """Read checkpoint and pairs, or assume what is missing or given here instead.

    Raises ValueError for a shape that is unknown or cannot be guessed.
    """
    for key in ("draws", "beyond", "matches", "extra_problems"):
        if (value := getattr(config, key)) > MAX_OPTION:
            raise ValueError(f"'{key}' is {value}, and more than {MAX_OPTION} are not planned")
    assumptions: list[str] = []
    loaded = load_model(config, shape, assumptions)
    if isinstance(loaded, str):
        model, size, source = None, size_of_shape(loaded, config.dtype), f"the shape {loaded}"
    else:
        model, size, source = loaded, size_of_model(loaded), f"the checkpoint {config.checkpoint.name}"
    if config.pairs.filter == "both_correct":
        assumptions.append("the run measures the filter both_correct; every pair is counted here, as an upper bound")
    if model is not None and config.pairs.file.is_file() and pairs is None and tokens is None:
        from codi_tracing.patching.pairs.selection import select_pairs

        usable = config.model_copy(update={"pairs": config.pairs.model_copy(update={"filter": "usable"})})
        chosen = select_pairs(model, load_pairs(config.pairs.file), usable)
        return PlanInputs(size, source, chosen.ready, chosen.donors, chosen.everyone, model, assumptions)
    count = count_pairs(config, pairs, assumptions)
    tokens = TOKENS if tokens is None else tokens
    assumptions.append(
        f"every question has {tokens} tokens (change with --tokens), every answer {FORCED} shared tokens and one more, "
        "every pair all its unrelated donors; answers of several lengths would make more batches"
    )
    everyone = assumed_pairs(count, tokens)
    ready = everyone[: config.pairs.limit]
    donors = [(Donor("", "", 0.0),) * config.draws] * len(ready)
    return PlanInputs(size, source, ready, donors, everyone, None, assumptions)


def load_model(config: RunConfig, shape: str | None, assumptions: list[str]) -> CodiModel | str:
    """The checkpoint without its weights; or, if it is missing or a shape is given, the name of a known shape."""
    folder = config.checkpoint
    if shape is not None:
        assumptions.append(f"the sizes are those of the shape given (--shape), not of the checkpoint {folder.name}")
    elif not folder.is_dir():
        shape = guessed_shape(folder.name)
        if shape is None:
            known = ", ".join(known_shapes())
            raise ValueError(f"{folder}: is missing, and its name suggests no size; give --shape, one of {known}")
        assumptions.append(
            f"the checkpoint {folder.name} is missing: its name suggests the shape {shape} (change with --shape)"
        )
    else:
        from codi_tracing.traces.model.checkpoint import CheckpointError, read_card
        from codi_tracing.traces.model.loading import load_codi

        try:
            return load_codi(folder, dtype=config.dtype, remote=True)
        except CheckpointError as error:
            shape = shape_of_base(read_card(folder).base)
            if shape is None:
                raise
            assumptions.append(f"the sizes are those of the shape {shape}, because {error}")
    codi = read_shape(shape).codi
    whose = f"those of {codi.checkpoint}" if codi.checkpoint else "assumed: no CODI checkpoint over it is published"
    assumptions.append(
        f"{codi.n_latents} latent steps, LoRA of rank {codi.lora_rank} and a projection of width {codi.prj_dim} are "
        f"{whose}"
    )
    return shape


def count_pairs(config: RunConfig, given: int | None, assumptions: list[str]) -> int:
    """The number of pairs: given, in the file, or assumed."""
    file = config.pairs.file
    if given is not None:
        assumptions.append(f"{given} pairs are counted (--pairs), not those of {file.name}")
        return given
    if not file.is_file():
        assumptions.append(f"the pairs file {file.name} is missing: {ASSUMED_PAIRS} pairs are assumed (see --pairs)")
        return ASSUMED_PAIRS
    count = len(split_usable(load_pairs(file))[0])
    if not count:
        raise ValueError(f"{file}: none of its pairs is a contrast; codi pairs check says why")
    assumptions.append(f"{count} pairs of {file.name} are a contrast as texts; no tokenizer has read them")
    return count


def assumed_pairs(count: int, tokens: int) -> list[TokenizedPair]:
    """Pairs of which only the lengths matter."""
    return [TokenizedPair(rank, ASSUMED_PAIR, tokens, (0,) * FORCED, ((0, 0), (0, 0))) for rank in range(count)]
