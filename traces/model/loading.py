"""Load a CODI checkpoint folder as an nnsight model; every tensor is accounted for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model import grouped_attention as attention
from codi_tracing.traces.model.checkpoint import (
    ADAPTER,
    DTYPES,
    Card,
    CheckpointError,
    base_location,
    find_checkpoint,
    read_card,
    read_tensors,
    read_thought,
    reason,
)
from codi_tracing.traces.model.codi_model import CodiModel, LoadReport
from codi_tracing.traces.model.families import family_of
from codi_tracing.traces.model.integrity import check_base, check_lora


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
    folder = find_checkpoint(folder)
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
        own = str((folder / ADAPTER).resolve())
        known_as_it_is(base)
        if elsewhere is None:
            lm = TransformersModel(
                base, task="text-generation", tokenizer=tokenizer, peft=own, dtype=dtype, device_map=device,
                dispatch=True, **pinned,
            )  # fmt: skip
            return lm, tokenizer, family
    named, adapter = elsewhere.base or base, elsewhere.adapter or own
    known_as_it_is(named)
    with refusing(f"{folder}: for a deployment,", f"{named} with the adapter {adapter}"):  # of both, the configs alone
        lm = TransformersModel(
            named, task="text-generation", tokenizer=tokenizer, peft=adapter if adapted else None, dtype=dtype,
            **pinned,
        )  # fmt: skip
    return lm, tokenizer, family


def known_as_it_is(base: str) -> None:
    """Tell nnsight that a folder is known to a deployment by its path: else it asks the Hub how the name is spelled."""
    from nnsight.modeling import huggingface

    if os.path.isabs(base):
        huggingface._ID_CACHE[base] = base


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
