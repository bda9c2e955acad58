"""The sizes of a CODI model that decide what a run costs. No torch.

>>> size = size_of_shape("gpt2")
>>> size.base_parameters, size.n_layers
(124439808, 12)
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from codi_tracing.configs.model_shapes import read_shape

if TYPE_CHECKING:
    from codi_tracing.traces.model.codi_model import CodiModel

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
LORA_BYTES = 4  # PEFT keeps LoRA in fp32
SIZE_FIELDS = {  # the base's fields, and their names in a Hugging Face config
    "family": "model_type",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "d_model": "hidden_size",
    "d_mlp": "intermediate_size",
    "vocab": "vocab_size",
    "n_positions": "max_position_embeddings",
    "tied": "tie_word_embeddings",
}


class ModelSize(NamedTuple):
    """A base's sizes, and what CODI adds to it."""

    family: str  # llama or gpt2
    n_layers: int
    n_heads: int
    kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    vocab: int
    n_positions: int
    tied: bool  # the LM head is the embedding
    dtype: str
    n_latents: int = 0
    prj_dim: int = 0
    lora_parameters: int = 0
    opening: int = 1  # tokens between thought and answer: EoT, and EOS where the questions end in EOS

    @property
    def number_bytes(self) -> int:
        return BYTES[self.dtype]

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.d_head

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Input and output widths of a block's linear layers, all of which CODI's LoRA adapts."""
        d, wide, q, kv = self.d_model, self.d_mlp, self.n_heads * self.d_head, self.kv_width
        if self.family == "gpt2":
            return [(d, 3 * d), (d, d), (d, wide), (wide, d)]
        return [(d, q), (d, kv), (d, kv), (q, d), (d, wide), (d, wide), (wide, d)]

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers of all blocks: the parameters that each token is multiplied with."""
        return self.n_layers * sum(map(prod, self.linears))

    @property
    def projection_parameters(self) -> int:
        """Weights and biases of the projection's two linear layers and its norm."""
        return 2 * self.d_model * self.prj_dim + self.prj_dim + 3 * self.d_model

    @property
    def base_parameters(self) -> int:
        d, gpt2 = self.d_model, self.family == "gpt2"
        biases = sum(out for _, out in self.linears) + 2 * d if gpt2 else 0
        norms = self.n_layers * 2 * d + (2 * d if gpt2 else d)
        embeddings = (1 if self.tied else 2) * self.vocab * d + (self.n_positions * d if gpt2 else 0)
        return embeddings + norms + self.n_layers * biases + self.linear_parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of everything that is loaded: base, LoRA (in fp32), projection, BoT and EoT."""
        parameters = self.base_parameters + self.projection_parameters + 2 * self.d_model
        return parameters * self.number_bytes + self.lora_parameters * LORA_BYTES


def size_of_config(config: Any, dtype: str, **codi: Any) -> ModelSize:
    """The size that a Hugging Face config or a known shape describes; `codi` are the fields that CODI adds."""
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    defaults = {
        "intermediate_size": getattr(config, "n_inner", None) or 4 * d_model,
        "num_key_value_heads": n_heads,
        "head_dim": d_model // n_heads,
        "tie_word_embeddings": False,
    }
    base: dict[str, Any] = {
        field: getattr(config, name, None) or defaults.get(name) for field, name in SIZE_FIELDS.items()
    }
    return ModelSize(dtype=dtype, **base, **codi)


def size_of_shape(name: str, dtype: str = "auto") -> ModelSize:
    """The size of a known shape and of the CODI checkpoint over it; `auto` is the shape's own precision."""
    shape = read_shape(name)
    codi = shape.codi
    dtype = shape.torch_dtype if dtype == "auto" else dtype
    size = size_of_config(shape, dtype, n_latents=codi.n_latents, prj_dim=codi.prj_dim)
    return size._replace(lora_parameters=codi.lora_rank * size.n_layers * sum(map(sum, size.linears)))


def size_of_model(model: CodiModel) -> ModelSize:
    """The size of a model that was loaded with or without its weights."""
    return size_of_config(
        model.lm.config,
        str(model.dtype).removeprefix("torch."),
        n_latents=model.n_latents,
        prj_dim=model.project.get_parameter("1.weight").shape[0],
        lora_parameters=sum(p.numel() for name, p in model.lm._module.named_parameters() if ".lora_" in name),
        opening=1 if model.card.remove_eos else 2,
    )
