"""Sizes of known bases (`model_shapes.toml`), so that a run can be planned without weights.

>>> read_shape("gpt2").num_hidden_layers
12
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from codi_tracing.configs.schema import Count, Record

FILE = Path(__file__).with_name("model_shapes.toml")


class CodiShape(Record):
    """The sizes that a CODI checkpoint adds to its base."""

    checkpoint: str | None = None  # published, as a Hugging Face id
    prj_dim: Count
    n_latents: Count
    lora_rank: Count


class ModelShape(Record):
    """A base's sizes, under Hugging Face's names; `size` is the part of its checkpoints' names that tells the size."""

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
    codi: CodiShape


# The fields that a base's own config has too.
SIZES = tuple(name for name in ModelShape.model_fields if name not in ("bases", "size", "torch_dtype", "codi"))


def _shapes() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def known_shapes() -> list[str]:
    """The names of all shapes."""
    return sorted(_shapes())


def read_shape(name: str) -> ModelShape:
    """A shape by its name. Raises ValueError, naming the known ones."""
    shapes = _shapes()
    if name not in shapes:
        raise ValueError(f"shape {name!r} is unknown; use {', '.join(sorted(shapes))}")
    return ModelShape.model_validate(shapes[name])


def shape_of_base(base: str) -> str | None:
    """The name of the shape of a base, by its Hugging Face id."""
    return next((name for name, shape in _shapes().items() if base in shape["bases"]), None)


def guessed_shape(checkpoint: str) -> str | None:
    """The only shape whose size is in a checkpoint's name, as `1b` in `codi-llama1b`."""
    sizes = {name: shape["size"] for name, shape in _shapes().items()}
    fitting = [name for name, size in sizes.items() if re.search(rf"(?<![0-9.]){size}(?![0-9])", checkpoint.lower())]
    return fitting[0] if len(fitting) == 1 else None
