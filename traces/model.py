"""Load a CODI checkpoint as an nnsight model, loudly.

>>> model = load_codi("traces/embedded/thought")
>>> model.n_layers, model.n_latents
(4, 6)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from traces.checkpoint import ADAPTER, Card, CheckpointError, base_location, fingerprint, read_card, read_thought


class Family(NamedTuple):
    """Where a model family keeps the modules that the loop touches: paths in the nnsight tree."""

    decoder: str
    embedding: str
    blocks: str
    norm: str
    adapted: tuple[str, ...]  # the linear layers of a block that carry LoRA


_LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FAMILIES = {"llama": Family("model", "embed_tokens", "layers", "norm", _LLAMA_LINEAR)}


@dataclass(frozen=True)
class LoadReport:
    """What was expected of the adapter and what landed, in LoRA-carrying modules."""

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
    loaded: LoadReport

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
    def device(self) -> torch.device:
        return self.bot.device

    @property
    def dtype(self) -> torch.dtype:
        return self.bot.dtype

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
            "lora_modules": {"expected": self.loaded.expected, "landed": self.loaded.landed},
            "provenance": self.card.provenance,
        }


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"device {name!r} cannot be used here ({reason}); use auto, cpu or cuda") from None
    return device


def load_codi(folder: str | Path, device: str = "auto", dtype: str = "auto") -> CodiModel:
    """Load a checkpoint folder: base, adapter, projection, special vectors; all of it or a `CheckpointError`.

    `dtype` is `auto` (the card's), `float32`, `bfloat16` or `float16`.
    """
    folder = Path(folder)
    card = read_card(folder)
    base = base_location(folder, card)
    if not (folder / ADAPTER / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder / ADAPTER}: no adapter_config.json, so the LoRA is missing")
    name = card.dtype if dtype == "auto" else dtype
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype {name!r} is unknown; use auto, float32, bfloat16 or float16")
    place, kind = pick_device(device), getattr(torch, name)
    lm, tokenizer, family = _load_base(base, folder, card, place, kind)
    decoder = getattr(lm, family.decoder)
    project, bot, eot = read_thought(folder, lm.config.hidden_size)
    modules = [name for name, _ in lm._module.named_modules() if name.endswith(".lora_A")]
    report = LoadReport(expected=len(family.adapted) * len(getattr(decoder, family.blocks)), landed=len(modules))
    if not report.complete:
        raise CheckpointError(
            f"{folder / ADAPTER}: LoRA landed on {report.landed} of {report.expected} linear layers of the base; "
            "the adapter belongs to another base or was trained on fewer modules than CODI's"
        )
    return CodiModel(
        lm=lm,
        tokenizer=tokenizer,
        family=family,
        project=project.to(place, kind),
        bot=bot.to(place, kind),
        eot=eot.to(place, kind),
        card=card,
        folder=folder,
        loaded=report,
    )


def _load_base(base: str, folder: Path, card: Card, device: torch.device, dtype: torch.dtype):
    """The base under nnsight with the adapter attached, its tokenizer and its family."""
    from nnsight.modeling.transformers import TransformersModel
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    pinned = {"revision": card.revision} if card.revision else {}
    try:
        config = AutoConfig.from_pretrained(base, **pinned)
        if config.model_type not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise CheckpointError(f"{folder}: its base is of family {config.model_type!r}; supported are {known}")
        tokenizer = AutoTokenizer.from_pretrained(base, **pinned)
        lm = TransformersModel(
            base, task="text-generation", tokenizer=tokenizer, peft=str(folder / ADAPTER), dtype=dtype,
            device_map=device, dispatch=True, **pinned,
        )  # fmt: skip
    except CheckpointError:
        raise
    except OSError as error:
        first = str(error).splitlines()[0]
        fetch = "" if os.path.isdir(base) else f"; fetch it once while online: hf download {base}"
        raise CheckpointError(f"{folder}: the base {base} cannot be loaded ({first}){fetch}") from None
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: base or adapter cannot be loaded ({first})") from None
    return lm, tokenizer, FAMILIES[config.model_type]
