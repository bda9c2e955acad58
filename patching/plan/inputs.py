"""Inputs of a plan: the model's sizes and the tokenized pairs; where files are missing, assumed ones. No torch without
a checkpoint, and no weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from codi_tracing.configs.model_shapes import guessed_shape, known_shapes, read_shape, shape_of_base
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine.model_size import ModelSize, size_of_checkpoint, size_of_shape
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import Pair, Side, load_pairs
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.patching.pairs.validity import split_usable

# Assumed where pairs are missing: the original experiment's number of pairs, a word problem's length, and the tokens of
# "The answer is:" and a blank.
PAIRS, TOKENS, FORCED = 66, 70, 5
MAX_OPTION = 10_000  # of options that multiply cells or pairs
ASSUMED_PAIR = Pair(0, "", Side("", 0.0), Side("", 1.0))


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint without its weights: enough to tokenize text."""

    tokenizer: Any
    card: Any
    n_positions: int

    @property
    def n_latents(self) -> int:
        return self.card.n_latents


class PlanInputs(NamedTuple):
    """A model's sizes, the pairs to patch with their donors, all usable pairs, and what was assumed."""

    size: ModelSize
    size_source: str
    ready: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    everyone: list[TokenizedPair]
    files: CheckpointFiles | None  # None: the pairs are assumed ones
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
    size, source, files = load_size(config, shape, assumptions)
    if config.pairs.filter == "both_correct":
        assumptions.append("the run measures the filter both_correct; every pair is counted here, as an upper bound")
    if files is not None and config.pairs.file.is_file() and pairs is None and tokens is None:
        return read_pairs(config, size, source, files, assumptions)
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


def assumed_pairs(count: int, tokens: int) -> list[TokenizedPair]:
    """Pairs of which only the lengths matter."""
    return [TokenizedPair(rank, ASSUMED_PAIR, tokens, (0,) * FORCED, ((0, 0), (0, 0))) for rank in range(count)]


def count_pairs(config: RunConfig, given: int | None, assumptions: list[str]) -> int:
    """The number of pairs: given, in the file, or assumed."""
    file = config.pairs.file
    if given is not None:
        assumptions.append(f"{given} pairs are counted (--pairs), not those of {file.name}")
        return given
    if not file.is_file():
        assumptions.append(f"the pairs file {file.name} is missing: {PAIRS} pairs are assumed (change with --pairs)")
        return PAIRS
    count = len(split_usable(load_pairs(file))[0])
    if not count:
        raise ValueError(f"{file}: none of its pairs is a contrast; codi pairs check says why")
    assumptions.append(f"{count} pairs of {file.name} are a contrast as texts; no tokenizer has read them")
    return count


def load_size(
    config: RunConfig, shape: str | None, assumptions: list[str]
) -> tuple[ModelSize, str, CheckpointFiles | None]:
    """The model's sizes and their source: the shape given, the checkpoint, or the shape that a name suggests."""
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
    if shape is None:
        from codi_tracing.traces.model.checkpoint import read_card

        card = read_card(folder)
        try:
            base_config, tokenizer = read_base(card, folder)
        except ValueError:
            shape = shape_of_base(card.base)
            if shape is None:
                raise
            assumptions.append(f"{folder.name}'s base {card.base} is missing: the sizes are those of the shape {shape}")
        else:
            size = size_of_checkpoint(folder, base_config, card, config.dtype)
            return size, f"the checkpoint {folder.name}", CheckpointFiles(tokenizer, card, size.n_positions)
    codi = read_shape(shape).codi
    whose = f"those of {codi.checkpoint}" if codi.checkpoint else "assumed: no CODI checkpoint over it is published"
    assumptions.append(
        f"{codi.n_latents} latent steps, LoRA of rank {codi.lora_rank} and a projection of width {codi.prj_dim} are {whose}"
    )
    return size_of_shape(shape, config.dtype), f"the shape {shape}", None


def read_base(card: Any, folder: Path) -> tuple[Any, Any]:
    """The config and tokenizer of a checkpoint's base."""
    from transformers import AutoConfig, AutoTokenizer

    from codi_tracing.traces.model.checkpoint import base_location
    from codi_tracing.traces.model.integrity import check_base
    from codi_tracing.traces.model.loading import refusing

    base = base_location(folder, card)
    pinned: dict[str, Any] = {"revision": card.revision} if card.revision else {}
    with refusing(f"{folder}: its base", base):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **pinned)
        check_base(base, config, card.revision)
        return config, AutoTokenizer.from_pretrained(base, trust_remote_code=False, **pinned)


def read_pairs(
    config: RunConfig, size: ModelSize, source: str, files: CheckpointFiles, assumptions: list[str]
) -> PlanInputs:
    """The pairs of the config's file under the checkpoint's tokenizer, selected as a run selects them."""
    from codi_tracing.patching.pairs.selection import contrasts, draw

    everyone, _ = contrasts(files, load_pairs(config.pairs.file), config)
    if not everyone:
        raise ValueError(f"{config.pairs.file}: none of its pairs is a contrast under this tokenizer")
    donors = draw_unrelated([p.pair for p in everyone], [p.tokens for p in everyone], config.seed, config.draws)
    kept = draw(len(everyone), config.pairs.limit, config.pairs.seed)
    ready = [everyone[i] for i in kept]
    return PlanInputs(size, source, ready, [donors[i] for i in kept], everyone, files, assumptions)
