"""What the plan of a run can know: the model's sizes and the pairs' tokens where they are at hand, else stand-ins.

No weight is read, and without a checkpoint no torch is imported. Whatever stands in for something is named in a
sentence, and so is what cannot be known before a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from codi_tracing.configs.model_shapes import guessed_shape, known_shapes, read_shape, shape_of_base
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine.model_size import Anatomy, anatomy_at, anatomy_of, differences
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import Pair, Side, load_pairs
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.patching.pairs.validity import split_usable

# Stand-ins: as many pairs as the original experiment's, of a word problem's length, "The answer is:" and a blank.
PAIRS, TOKENS, FORCED = 66, 70, 5
MOST = 10_000  # of what makes cells or pairs
NOBODY = Pair(0, "", Side("", 0.0), Side("", 1.0))


@dataclass(frozen=True)
class Files:
    """A checkpoint's folder of which no weight is loaded: enough to turn text into tokens."""

    tokenizer: Any
    card: Any
    n_positions: int

    @property
    def n_latents(self) -> int:
        return self.card.n_latents


class AtHand(NamedTuple):
    """A model's sizes, the pairs to patch with their donors, all usable ones, and what had to be assumed."""

    model: Anatomy
    named: str  # what the sizes are of
    ready: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    everyone: list[TokenizedPair]
    files: Files | None  # with pairs that were read under its tokenizer
    said: list[str]


def at_hand(config: RunConfig, pairs: int | None = None, tokens: int | None = None, shape: str | None = None) -> AtHand:
    """Look for checkpoint and pairs, and stand in for what is not there; what is given stands in all the same.

    Raises ValueError for a shape that is unknown, or cannot be guessed.
    """
    for key in ("draws", "beyond", "matches", "extra_problems"):
        if (value := getattr(config, key)) > MOST:
            raise ValueError(f"'{key}' is {value}, and more than {MOST} are not planned")
    said: list[str] = []
    model, named, files = known_model(config, shape, said)
    asked = pairs is not None or tokens is not None
    if files is not None and config.pairs.file.is_file() and not asked:
        return read_pairs(config, model, named, files, said)
    count, length = counted(config, pairs, said), TOKENS if tokens is None else tokens
    said.append(
        f"every question is taken to have {length} tokens (--tokens says otherwise), every answer {FORCED} that both "
        "sides share and one more, every pair its unrelated donors; answers of several lengths would make more batches"
    )
    filtered(config, said)
    everyone = [stand_in(rank, length) for rank in range(count)]
    ready = everyone[: config.pairs.limit]
    donors = [(Donor("", "", 0.0),) * config.draws] * len(ready)
    return AtHand(model, named, ready, donors, everyone, None, said)


def counted(config: RunConfig, pairs: int | None, said: list[str]) -> int:
    """How many pairs there are: so many as are asked for, as the file has, or as are assumed."""
    file = config.pairs.file
    if pairs is not None:
        said.append(f"{pairs} pairs are counted, as asked for with --pairs, not those of {file.name}")
        return pairs
    if not file.is_file():
        said.append(f"the pairs {file.name} are not at hand: {PAIRS} stand in (--pairs says otherwise)")
        return PAIRS
    count = len(split_usable(load_pairs(file))[0])
    if not count:
        raise ValueError(f"{file}: none of its pairs is a contrast; codi pairs check says why")
    said.append(f"{count} pairs of {file.name} are a contrast as texts; no tokenizer has read them")
    return count


def filtered(config: RunConfig, said: list[str]) -> None:
    """Say that a filter is measured by the run."""
    if config.pairs.filter == "both_correct":
        said.append(
            "the filter both_correct is measured by the run, so every pair is counted: what is here is an upper bound"
        )


def known_model(config: RunConfig, shape: str | None, said: list[str]) -> tuple[Anatomy, str, Files | None]:
    """A model's sizes: of the shape that is asked for, of the checkpoint, or of the shape that its name tells."""
    folder = config.checkpoint
    if shape is not None:
        said.append(f"the sizes are the shape's, asked for with --shape, not those of the checkpoint {folder.name}")
        return shaped(shape, config, said)
    if not folder.is_dir():
        name = guessed_shape(folder.name)
        if name is None:
            known = ", ".join(known_shapes())
            raise ValueError(f"{folder}: is not there, and its name tells no size; give --shape, one of {known}")
        said.append(f"the checkpoint {folder.name} is not at hand: by its name, the shape {name} stands in (--shape)")
        return shaped(name, config, said)
    from codi_tracing.traces.model.checkpoint import base_location, read_card

    card = read_card(folder)
    try:
        config_of_base, tokenizer = base_files(base_location(folder, card), card, folder)
    except ValueError:
        name = shape_of_base(card.base)
        if name is None:
            raise
        said.append(f"{folder.name}'s base {card.base} is not at hand: the shape {name}, which names it, stands in")
        return shaped(name, config, said)
    said += differences(card.base, config_of_base)
    model = anatomy_at(folder, config_of_base, card, config.dtype)
    return model, f"the checkpoint {folder.name}", Files(tokenizer, card, model.n_positions)


def shaped(name: str, config: RunConfig, said: list[str]) -> tuple[Anatomy, str, None]:
    """A shape's sizes, and what of its CODI checkpoint is published."""
    shape = read_shape(name)
    model, codi = anatomy_of(shape, config.dtype), shape.codi
    whose = f"as in {codi.checkpoint}" if codi.checkpoint else "assumed, for no CODI checkpoint over it is published"
    own = f"{codi.n_latents} latent steps, LoRA of rank {codi.lora_rank}, a projection of width {codi.prj_dim}"
    said.append(f"{own}: {whose}")
    return model, f"the shape {name}", None


def base_files(base: str, card: Any, folder: Path) -> tuple[Any, Any]:
    """A base's config and tokenizer, without its weights."""
    from transformers import AutoConfig, AutoTokenizer

    from codi_tracing.traces.model.integrity import check_base
    from codi_tracing.traces.model.loading import refusing

    pinned: dict[str, Any] = {"revision": card.revision} if card.revision else {}
    with refusing(f"{folder}: its base", base):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **pinned)
        check_base(base, config, card.revision)
        return config, AutoTokenizer.from_pretrained(base, trust_remote_code=False, **pinned)


def read_pairs(config: RunConfig, model: Anatomy, named: str, files: Files, said: list[str]) -> AtHand:
    """The pairs of a file under the checkpoint's tokenizer, as a run selects them, but for what the model answers."""
    from codi_tracing.patching.pairs.selection import limited, usable_pairs

    everyone, _ = usable_pairs(files, load_pairs(config.pairs.file), config)
    if not everyone:
        raise ValueError(f"{config.pairs.file}: none of its pairs is a contrast under this tokenizer")
    filtered(config, said)
    drawn = draw_unrelated(everyone, config.seed, config.draws)
    kept = limited(len(everyone), config.pairs.limit, config.pairs.seed)
    return AtHand(model, named, [everyone[i] for i in kept], [drawn[i] for i in kept], everyone, files, said)


def stand_in(rank: int, tokens: int, forced: int = FORCED, answer: Sequence[int] = (0, 0)) -> TokenizedPair:
    """A pair of which only the lengths are meant."""
    return TokenizedPair(rank, NOBODY, tokens, (0,) * forced, (tuple(answer), tuple(answer)))
