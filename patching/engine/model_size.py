"""The sizes of a CODI model that decide what it costs, read off a shape or off a checkpoint's files. No torch.

>>> model = anatomy_of(read_shape("gpt2"), "auto")
>>> model.base_numbers, model.n_layers
(124439808, 12)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from codi_tracing.configs.model_shapes import SIZES, Shape, read_shape, shape_of_base
from codi_tracing.patching.engine.partition import Shape as Budgeted

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LORA_BYTES = 4  # PEFT keeps LoRA in fp32


class Anatomy(NamedTuple):
    """A base's sizes, and what CODI adds: latent steps, LoRA, the projection between steps."""

    family: str  # llama or gpt2
    n_layers: int
    n_latents: int
    n_heads: int
    kv_heads: int
    head_width: int
    d_model: int
    d_mlp: int
    vocab: int
    n_positions: int
    tied: bool  # whether the LM head is the embedding
    dtype: str
    prj_dim: int
    lora_numbers: int
    opening: int = 1  # tokens that end a thought: EoT, and EOS where the questions end in EOS

    @property
    def bytes_each(self) -> int:
        return BYTES[self.dtype]

    @property
    def budgeted(self) -> Budgeted:
        """As the estimate of memory wants it."""
        kv_width = self.kv_heads * self.head_width
        return Budgeted(self.n_layers, self.d_model, self.d_mlp, kv_width, self.n_heads, self.vocab, self.bytes_each)

    @property
    def attended(self) -> int:
        """Width of the queries of all heads."""
        return self.n_heads * self.head_width

    @property
    def linears(self) -> list[tuple[int, int]]:
        """The linear layers of a block, in and out; CODI's LoRA adapts every one."""
        d, wide, q, kv = self.d_model, self.d_mlp, self.attended, self.kv_heads * self.head_width
        if self.family == "gpt2":
            return [(d, 3 * d), (d, d), (d, wide), (wide, d)]
        return [(d, q), (d, kv), (d, kv), (q, d), (d, wide), (d, wide), (wide, d)]

    @property
    def block_products(self) -> int:
        """Multiplications of one token in the linear layers of one block."""
        return sum(into * out for into, out in self.linears)

    @property
    def project_products(self) -> int:
        """Multiplications of one latent in the projection."""
        return 2 * self.d_model * self.prj_dim

    @property
    def project_numbers(self) -> int:
        """Weights and biases of the projection's two linear layers and its norm."""
        return self.project_products + self.prj_dim + 3 * self.d_model

    @property
    def base_numbers(self) -> int:
        """Parameters of the base."""
        d, gpt2 = self.d_model, self.family == "gpt2"
        biases = sum(out for _, out in self.linears) + 2 * d if gpt2 else 0
        around = self.n_positions * d + 2 * d if gpt2 else d  # learned positions; the final norm
        head = 0 if self.tied else self.vocab * d
        return self.vocab * d + head + around + self.n_layers * (self.block_products + biases + 2 * d)

    @property
    def weight_bytes(self) -> int:
        """All that is loaded: the base, LoRA (in fp32), projection, BoT and EoT."""
        own = self.base_numbers + self.project_numbers + 2 * self.d_model
        return own * self.bytes_each + self.lora_numbers * LORA_BYTES


def built(sizes: Mapping[str, Any], **others: Any) -> Anatomy:
    """From sizes under Hugging Face's names, and what CODI adds."""
    return Anatomy(
        family=sizes["model_type"],
        n_layers=sizes["num_hidden_layers"],
        n_heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_width=sizes["head_dim"],
        d_model=sizes["hidden_size"],
        d_mlp=sizes["intermediate_size"],
        vocab=sizes["vocab_size"],
        n_positions=sizes["max_position_embeddings"],
        tied=bool(sizes["tie_word_embeddings"]),
        **others,
    )


def anatomy_of(shape: Shape, dtype: str) -> Anatomy:
    """The sizes of a shape and of the CODI checkpoint over it; `auto` is the checkpoint's own precision."""
    codi, dtype = shape.codi, shape.torch_dtype if dtype == "auto" else dtype
    sizes = {name: getattr(shape, name) for name in SIZES}
    model = built(sizes, n_latents=codi.n_latents, prj_dim=codi.prj_dim, dtype=dtype, lora_numbers=0)
    return model._replace(lora_numbers=codi.lora_rank * model.n_layers * sum(map(sum, model.linears)))


def sizes_in(config: Any) -> dict[str, Any]:
    """The sizes that a Hugging Face config gives, under a shape's names."""
    d, heads = config.hidden_size, config.num_attention_heads
    wide = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d
    filled = {
        "intermediate_size": wide,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or d // heads,
    }
    return {name: filled.get(name, getattr(config, name, None)) for name in SIZES}


def differences(base: str, config: Any) -> list[str]:
    """Where a base's own config and the shape that names the base disagree, a sentence each; none where none does."""
    name = shape_of_base(base)
    if name is None:
        return []
    shape, found = read_shape(name), sizes_in(config)
    return [
        f"{base}: its config says {key} {found[key]}, the shape {name} says {getattr(shape, key)}; the config counts"
        for key in SIZES
        if found[key] != getattr(shape, key)
    ]


def anatomy_at(folder: Path, config: Any, card: Any, dtype: str) -> Anatomy:
    """The sizes of a checkpoint at hand: its base's config, and the headers of its tensors. No weight is read."""
    from codi_tracing.traces.model.checkpoint import ADAPTER, tensors_path
    from codi_tracing.traces.model.families import family_of
    from codi_tracing.traces.model.integrity import LORA, check_lora, shapes_of

    family_of(config, card.base)
    check_lora(folder / ADAPTER)
    sizes, dtype = sizes_in(config), card.dtype if dtype == "auto" else dtype
    projection = shapes_of(path := tensors_path(folder)).get("prj.1.weight", ())
    if len(projection) != 2:
        raise ValueError(f"{path}: has no projection (prj.1.weight); restore the file")
    held = shapes_of(folder / ADAPTER / LORA)
    return built(
        sizes,
        n_latents=card.n_latents,
        prj_dim=projection[0],
        dtype=dtype,
        lora_numbers=sum(prod(size) for name, size in held.items() if ".lora_" in name),
        opening=1 if card.remove_eos else 2,
    )
