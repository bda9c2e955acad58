"""A CODI model under nnsight: the modules of its family by name, its projection and its BoT and EoT vectors."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model.checkpoint import Card, fingerprint
from codi_tracing.traces.model.families import Family
from codi_tracing.traces.model.grouped_attention import NAME as GROUPED
from codi_tracing.traces.remote.submitted_jobs import Ledger


class LoadReport(NamedTuple):
    """LoRA-carrying modules: how many the adapter's config asks for, and how many hold the values of its file."""

    expected: int
    landed: int

    @property
    def complete(self) -> bool:
        return self.expected == self.landed


@dataclass(frozen=True)
class CodiModel:
    """A CODI model under nnsight.

    model.lm                     the nnsight TransformersModel: base with its LoRA attached, no PEFT prefix
    ├── model.embedding          token embeddings; BoT and EoT are written at its output over a placeholder
    ├── model.blocks[layer]      .output is the residual stream after the block, [pair, token, d_model]
    ├── model.norm               .output, projected, is the next latent
    └── model.lm.lm_head         .output are the logits
    model.project                final hidden state -> latent
    model.bot, model.eot         the two special vectors, [d_model]
    """

    lm: Any
    tokenizer: Any
    family: Family
    project: nn.Module
    bot: Tensor
    eot: Tensor
    card: Card
    folder: Path
    loaded: LoadReport | None  # None where the weights are a deployment's
    deployment: Remote | None = None
    ledger: Ledger | None = None  # where jobs are submitted and collected later

    def __getstate__(self) -> dict[str, Any]:
        """What is sent where a session runs elsewhere: nothing of this machine, and tensors that any can read."""
        parts = {"project": deepcopy(self.project).cpu(), "bot": self.bot.cpu(), "eot": self.eot.cpu()}
        return {**self.__dict__, **parts, "folder": Path(self.folder.name), "deployment": None, "ledger": None}

    @property
    def decoder(self) -> Any:
        return getattr(self.lm, self.family.decoder)

    @property
    def embedding(self) -> Any:
        return getattr(self.decoder, self.family.embedding)

    @property
    def blocks(self) -> Any:
        return getattr(self.decoder, self.family.blocks)

    @property
    def norm(self) -> Any:
        return getattr(self.decoder, self.family.norm)

    def attention(self, block: Any) -> Any:
        """A block's attention; `.output[0]` is what it adds to the residual stream."""
        return getattr(block, self.family.attention)

    def heads(self, block: Any) -> Any:
        """The attention's output projection; `.input` are the heads side by side, [pair, token, head × d_head]."""
        return getattr(self.attention(block), self.family.heads)

    def mlp(self, block: Any) -> Any:
        """A block's MLP; `.output` is what it adds to the residual stream."""
        return getattr(block, self.family.mlp)

    @property
    def group(self) -> int:
        """How many heads' queries share keys in one attention, see `codi_tracing.traces.model.grouped_attention`; 1 where the model's own runs."""
        config = self.lm.config
        grouped = config._attn_implementation == GROUPED
        return config.num_attention_heads // config.num_key_value_heads if grouped else 1

    @property
    def n_heads(self) -> int:
        return self.lm.config.num_attention_heads

    @property
    def head_width(self) -> int:
        config = self.lm.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return self.bot.shape[0]

    @property
    def n_latents(self) -> int:
        return self.card.n_latents

    @property
    def n_positions(self) -> int:
        return self.lm.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        """Where the weights are, and tensors are made; the CPU where this process has none."""
        place = self.lm._module.device
        return torch.device("cpu") if place.type == "meta" else place

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, wherever they are: a deployment's may be another than was asked for."""
        return self.lm._module.dtype

    def latent_after(self, hidden: Tensor) -> Tensor:
        """The next latent, from the final hidden state (after the final norm): projected where that state is."""
        project = self.project.to(hidden.device)
        return project(hidden.to(next(project.parameters()).dtype)).to(hidden.dtype)

    def describe(self) -> dict[str, Any]:
        """What the manifest records of the model; sizes are read off the model."""
        return {
            "checkpoint": self.folder.name,
            "base": self.card.base,
            "sha256": fingerprint(self.folder),
            "n_layers": self.n_layers,
            "n_latents": self.n_latents,
            "d_model": self.d_model,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "lora_modules": None if self.loaded is None else self.loaded._asdict(),
            "provenance": self.card.provenance,
        }
