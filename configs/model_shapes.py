"""Sizes of known bases, so that a run can be planned where no weights are: `configs/shapes/<name>.json`.

The fields are those of the base's Hugging Face config that decide sizes; `codi` is the published checkpoint over it,
or, where none is published (`checkpoint` is null), what one of the same recipe would have.

>>> read_shape("gpt2").num_hidden_layers
12
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from codi_tracing.configs.schema import Count, Record

FOLDER = Path(__file__).parent / "shapes"


class Thinking(Record):
    """What a CODI checkpoint adds to its base."""

    checkpoint: str | None  # published, as a Hugging Face id
    prj_dim: Count
    n_latents: Count
    lora_rank: Count


class Shape(Record):
    """A base's sizes, under Hugging Face's names; `size` is what names of its checkpoints have in them."""

    bases: tuple[str, ...]
    size: str
    model_type: Literal["llama", "gpt2"]
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    vocab_size: Count
    max_position_embeddings: Count
    tie_word_embeddings: bool
    torch_dtype: Literal["float32", "bfloat16", "float16"]
    codi: Thinking


SIZES = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


def known_shapes() -> list[str]:
    """The names of all shapes."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_shape(name: str) -> Shape:
    """A shape by its name. Raises ValueError, naming the known ones."""
    if name not in known_shapes():
        raise ValueError(f"shape {name!r} is unknown; use {', '.join(known_shapes())}")
    return Shape.model_validate_json((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def shape_of_base(base: str) -> str | None:
    """The name of the shape of a base, by its Hugging Face id."""
    return next((name for name in known_shapes() if base in read_shape(name).bases), None)


def guessed_shape(checkpoint: str) -> str | None:
    """The only shape whose size a checkpoint's name has in it, as `1b` in `codi-llama1b`."""
    found = [
        name
        for name in known_shapes()
        if re.search(rf"(?<![0-9.]){read_shape(name).size}(?![0-9])", checkpoint.lower())
    ]
    return found[0] if len(found) == 1 else None
