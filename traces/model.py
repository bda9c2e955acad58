"""Load a CODI checkpoint as an nnsight model, loudly.

>>> model = load_codi("traces/embedded/thought")
>>> model.n_layers, model.n_latents
(4, 6)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from configs.schema import Remote
from traces import attention
from traces.checkpoint import (
    ADAPTER,
    DTYPES,
    Card,
    CheckpointError,
    base_location,
    fingerprint,
    read_card,
    read_tensors,
    read_thought,
    reason,
)
from traces.ledger import Ledger
from traces.sizes import check_base, check_lora


class Family(NamedTuple):
    """Where a model family keeps the modules that the loop touches: names in the nnsight tree."""

    decoder: str
    embedding: str
    blocks: str
    norm: str
    attention: str  # these three: inside a block
    heads: str  # inside the attention: the output projection, whose input are the heads side by side
    mlp: str
    adapted: tuple[str, ...]  # PEFT's names of the linear layers that CODI adapts


FAMILIES = {
    "llama": Family(
        "model", "embed_tokens", "layers", "norm", "self_attn", "o_proj", "mlp",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "gpt2": Family("transformer", "wte", "h", "ln_f", "attn", "c_proj", "mlp", ("c_attn", "c_proj", "c_fc")),
}  # fmt: skip


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
        """What is sent where a session runs elsewhere: nothing of this machine."""
        return {**self.__dict__, "folder": Path(self.folder.name), "deployment": None, "ledger": None}

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
        """How many heads' queries share keys in one attention, see `traces.attention`; 1 where the model's own runs."""
        config = self.lm.config
        grouped = config._attn_implementation == attention.NAME
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


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first CUDA GPU, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({reason(error)}); use auto, cpu or cuda") from None
    return device


def load_codi(
    folder: str | Path, device: str = "auto", dtype: str = "auto", remote: Remote | str | bool | None = None,
    *, adapted: bool = True,
) -> CodiModel:  # fmt: skip
    """Load a checkpoint folder: base, adapter, projection, special vectors; all of it or a `CheckpointError`.

    `dtype` is `auto` (the card's), `float32`, `bfloat16` or `float16`. With `remote` (True, an address, or a config's
    record) a deployment of NDIF runs the model: no weights are loaded here, projection, BoT and EoT are sent with each
    job, and `device` has no meaning. `"local"` loads as ever and serialises each session as it would be sent. Without
    `adapted`, a deployment leaves the adapter off, as a control.
    """
    place = as_remote(remote)
    folder = Path(folder)
    card = read_card(folder)
    base = base_location(folder, card)
    if not (folder / ADAPTER / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder / ADAPTER}: no adapter_config.json, so the LoRA is missing")
    name = card.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; use auto, float32, bfloat16 or float16")
    elsewhere = place is not None and place.host != "local"
    here, kind = pick_device("cpu" if elsewhere else device), getattr(torch, name)
    lm, tokenizer, family = _load_base(base, folder, card, here, kind, place if elsewhere else None, adapted)
    if not elsewhere and getattr(lm.config, "num_key_value_heads", None) is not None:
        lm._module.set_attn_implementation(attention.NAME)
    project, bot, eot = read_thought(folder, lm.config.hidden_size)
    return CodiModel(
        lm=lm,
        tokenizer=tokenizer,
        family=family,
        project=project.to(here, kind).requires_grad_(False),
        bot=bot.to(here, kind),
        eot=eot.to(here, kind),
        card=card,
        folder=folder,
        loaded=None if elsewhere else _compare_adapter(lm._module, folder / ADAPTER),
        deployment=place,
    )


def as_remote(remote: Remote | str | bool | None) -> Remote | None:
    """The record of what `load_codi` was told of a deployment."""
    if isinstance(remote, str):
        return Remote(host=remote)
    return Remote() if remote is True else (remote or None)


def reinitialise(model: CodiModel, seed: int = 0) -> CodiModel:
    """The same checkpoint loaded anew, LoRA and projection as they were before any training: LoRA adds nothing then.

    What it shows is due to the base, the loop and the positions, and not to what the thought was trained for.
    """
    blank = load_codi(model.folder, str(model.device), str(model.dtype).removeprefix("torch."))
    with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else None):
        torch.manual_seed(seed)
        for name, parameter in blank.lm._module.named_parameters():
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(parameter.data, a=5**0.5)
            elif ".lora_B." in name:
                nn.init.zeros_(parameter.data)
        for module in blank.project.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                module.reset_parameters()
    return blank


def _load_base(
    base: str, folder: Path, card: Card, device: torch.device, dtype: torch.dtype, elsewhere: Remote | None = None,
    adapted: bool = True,
):  # fmt: skip
    """The base under nnsight with the adapter attached, its tokenizer and its family; without weights `elsewhere`."""
    from nnsight.modeling import huggingface
    from nnsight.modeling.transformers import TransformersModel
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    pinned: dict[str, Any] = {"revision": card.revision} if card.revision else {}
    pinned["trust_remote_code"] = False  # else transformers asks at the keyboard whether it may run a checkpoint's code
    with refusing(f"{folder}: its base", base):
        config = AutoConfig.from_pretrained(base, **pinned)
        family = family_of(config, base)
        check_base(base, config, card.revision)
        check_lora(folder / ADAPTER)
        tokenizer = AutoTokenizer.from_pretrained(base, **pinned)
        if elsewhere is None:
            lm = TransformersModel(
                base, task="text-generation", tokenizer=tokenizer, peft=str(folder / ADAPTER), dtype=dtype,
                device_map=device, dispatch=True, **pinned,
            )  # fmt: skip
        else:
            named, adapter = elsewhere.base or base, elsewhere.adapter or str((folder / ADAPTER).resolve())
            if os.path.isabs(named):
                huggingface._ID_CACHE[named] = named  # else nnsight asks the Hub how a folder's name is spelled
            lm = TransformersModel(
                named, task="text-generation", tokenizer=tokenizer, peft=adapter if adapted else None, dtype=dtype,
                **pinned,
            )  # fmt: skip
    return lm, tokenizer, family


def family_of(config: Any, base: str) -> Family:
    """The record of a base's family, by its config's model type."""
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(f"{base}: is of family {config.model_type!r}; supported are {known}")
    return FAMILIES[config.model_type]


@contextmanager
def refusing(what: str, base: str) -> Iterator[None]:
    """Turn what transformers, PEFT and the Hub raise while a base is loaded into one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        if os.path.isdir(base):
            raise CheckpointError(f"{what} {base} cannot be loaded ({reason(error)}); restore its files") from None
        raise CheckpointError(
            f"{what} {base} is no folder here and not in the local Hugging Face cache ({reason(error)}); "
            f"fetch it once while online: hf download {base}"
        ) from None
    except Exception as error:  # a damaged config makes the libraries raise anything
        raise CheckpointError(f"{what} {base} cannot be loaded ({reason(error)})") from error


def _compare_adapter(module: nn.Module, adapter: Path) -> LoadReport:
    """Count the LoRA modules whose matrices equal the adapter's file; PEFT leaves what it does not find at zero."""
    stored = read_tensors(adapter / "adapter_model.safetensors")
    lora = {name.replace(".default.", "."): p for name, p in module.named_parameters() if ".lora_" in name}
    asked = {name.partition(".lora_")[0] for name in lora}
    unfit = []
    for name, parameter in lora.items():
        tensor = stored.pop(f"base_model.model.{name}", None)
        if tensor is None or not torch.equal(tensor.to(parameter), parameter):
            unfit.append(name.partition(".lora_")[0])
    report = LoadReport(expected=len(asked), landed=len(asked - set(unfit)))
    if unfit or stored or not lora:
        first = min([*unfit, *stored], default="none")
        raise CheckpointError(
            f"{adapter}: LoRA landed on {report.landed} of {report.expected} linear layers and {len(stored)} of its "
            f"tensors fit nowhere, the first is {first}; the adapter belongs to another base or is incomplete"
        )
    return report
