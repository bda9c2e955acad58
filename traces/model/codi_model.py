"""A CODI model under nnsight: the modules of its family by name, its projection and its BoT and EoT vectors."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model.checkpoint import Card
from codi_tracing.traces.model.families import Family
from codi_tracing.traces.model.grouped_attention import NAME as GROUPED
from codi_tracing.traces.model.model_files import ModelFile, fingerprint


class LoadReport(NamedTuple):
    """Modules with LoRA: how many the adapter's config names, and how many hold the values of its file."""

    expected: int
    landed: int


@dataclass(frozen=True)
class CodiModel:
    """A CODI model under nnsight.

    model.lm                     the nnsight TransformersModel: base with its LoRA attached, no PEFT prefix
    ├── model.embedding          token embeddings; BoT and EoT are written at its output over a placeholder
    ├── model.blocks[layer]      a block; model.activation(block, kind) is what can be read and patched in it
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
    loaded: LoadReport | None  # None if a deployment holds the weights
    deployment: Remote | None = None
    files: tuple[ModelFile, ...] = ()  # that it was loaded from
    ledger: Any = None  # `submitted_jobs.Ledger`: jobs that are submitted now and collected later

    def __getstate__(self) -> dict[str, Any]:
        """The part that travels with a job: no path of this machine, and tensors on the CPU."""
        parts = {"project": deepcopy(self.project).cpu(), "bot": self.bot.cpu(), "eot": self.eot.cpu()}
        here = {"folder": Path(self.folder.name), "deployment": None, "ledger": None, "files": ()}
        return {**self.__dict__, **parts, **here}

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
        """A block's attention; `.output[1]` are its weights where the model attends in eager mode."""
        return getattr(block, self.family.attention)

    def activation(self, block: Any, kind: str) -> Any:
        """A block's activation of a kind, `[row, token, width]`; inside a trace it is read, and written by index.

        `head`: all heads side by side, the input of the attention's output projection · `attn`, `mlp`: what they add
        to the residual stream · `resid`: the residual stream after the block. This is their forward order.
        """
        if kind == "head":
            return getattr(self.attention(block), self.family.heads).input
        if kind == "attn":
            return self.attention(block).output[0]
        return getattr(block, self.family.mlp).output if kind == "mlp" else block.output

    @property
    def group(self) -> int:
        """How many heads share keys in one attention; 1 where the base's own attention runs (`grouped_attention`)."""
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
        """The device of the weights; the CPU if this process holds none."""
        device = self.lm._module.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype; a deployment's may differ from the one that was asked for."""
        return self.lm._module.dtype

    def latent_after(self, hidden: Tensor) -> Tensor:
        """The next latent: the final hidden state (after the final norm), projected on its own device."""
        project = self.project.to(hidden.device)
        return project(hidden.to(next(project.parameters()).dtype)).to(hidden.dtype)

    def describe(self) -> dict[str, Any]:
        """The manifest's record of the model, with the SHA-256 of every file that it was loaded from.

        A deployment's weights are not here: recorded are its host and the base and adapter that it was asked for.
        """
        return {
            "checkpoint": self.folder.name,
            "base": self.card.base,
            "files": fingerprint(self.files),
            "n_layers": self.n_layers,
            "n_latents": self.n_latents,
            "d_model": self.d_model,
            "device": "a deployment's" if self.loaded is None else str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "lora_modules": None if self.loaded is None else self.loaded._asdict(),
            "provenance": self.card.provenance,
            **({"deployment": self.deployment.asked()} if self.deployment and self.loaded is None else {}),
        }
