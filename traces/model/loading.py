"""Load a CODI checkpoint folder as an nnsight model, and check every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model.checkpoint import (
    ADAPTER,
    DTYPES,
    Card,
    CheckpointError,
    base_location,
    find_checkpoint,
    read_card,
    read_json,
    read_projection,
    read_tensors,
    reason,
)
from codi_tracing.traces.model.codi_model import CodiModel, LoadReport
from codi_tracing.traces.model.families import Family, family_of
from codi_tracing.traces.model.grouped_attention import NAME as GROUPED
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
    """Load a checkpoint folder, or a shipped checkpoint by name, completely; otherwise raise a `CheckpointError`.

    `dtype` is `auto` (the card's), `float32`, `bfloat16` or `float16`. With `remote` (True, an address, or a config's
    record) an NDIF deployment runs the model: no weights are loaded here, projection, BoT and EoT travel with each job,
    and `device` is ignored. `"local"` loads the weights and serialises each session as for a deployment. Without
    `adapted`, a deployment runs the base without the adapter, as a control.
    """
    deployment = as_remote(remote)
    folder = find_checkpoint(folder)
    card = read_card(folder)
    base = base_location(folder, card)
    if not (folder / ADAPTER / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder / ADAPTER}: no adapter_config.json, so the LoRA is missing")
    name = card.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; use auto, float32, bfloat16 or float16")
    elsewhere = deployment is not None and deployment.host != "local"
    where, number = pick_device("cpu" if elsewhere else device), getattr(torch, name)
    lm, tokenizer, family = _load_base(base, folder, card, where, number, deployment if elsewhere else None, adapted)
    if not elsewhere and getattr(lm.config, "num_key_value_heads", None) is not None:
        lm._module.set_attn_implementation(GROUPED)
    project, bot, eot = read_projection(folder, lm.config.hidden_size)
    return CodiModel(
        lm=lm,
        tokenizer=tokenizer,
        family=family,
        project=project.to(where, number).requires_grad_(False),
        bot=bot.to(where, number),
        eot=eot.to(where, number),
        card=card,
        folder=folder,
        loaded=None if elsewhere else _compare_adapter(lm._module, folder / ADAPTER),
        deployment=deployment,
    )


def as_remote(remote: Remote | str | bool | None) -> Remote | None:
    """`load_codi`'s argument `remote` as a config's record; None for this machine."""
    if isinstance(remote, str):
        return Remote(host=remote)
    return Remote() if remote is True else (remote or None)


def reinitialise(model: CodiModel, seed: int = 0) -> CodiModel:
    """The checkpoint loaded again with LoRA and projection as before training, where LoRA adds nothing.

    A control: its effects come from the base, the loop and the positions, not from CODI's training.
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


def open_base(what: str, base: str, revision: str | None = None) -> tuple[Any, Family, Any]:
    """A base's config, its family and its tokenizer, after a check of its files; `what` it is begins an error."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    pinned: dict[str, Any] = {"revision": revision} if revision else {}
    with refusing(what, base):  # without trust_remote_code=False, transformers asks at the keyboard
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **pinned)
        family = family_of(config, base)
        check_base(base, config, revision)
        return config, family, AutoTokenizer.from_pretrained(base, trust_remote_code=False, **pinned)


def _load_base(
    base: str, folder: Path, card: Card, device: torch.device, dtype: torch.dtype, elsewhere: Remote | None = None,
    adapted: bool = True,
):  # fmt: skip
    """The base under nnsight with the adapter, its tokenizer and its family; without weights if it runs `elsewhere`."""
    from nnsight.modeling.transformers import TransformersModel

    what = f"{folder}: its base"
    _, family, tokenizer = open_base(what, base, card.revision)
    check_lora(folder / ADAPTER)
    adapter, options = str((folder / ADAPTER).resolve()), {"device_map": device, "dispatch": True}
    if elsewhere is not None:  # the configs of base and adapter alone are read
        base, adapter, options = elsewhere.base or base, elsewhere.adapter or adapter, {}
        what = f"{folder}: for a deployment, with the adapter {adapter},"
    if card.revision:
        options["revision"] = card.revision
    skip_hub_lookup(base)
    with refusing(what, base), reading_byte_order_marks():
        lm = TransformersModel(
            base, task="text-generation", tokenizer=tokenizer, peft=adapter if adapted else None, dtype=dtype,
            trust_remote_code=False, **options,
        )  # fmt: skip
    return lm, tokenizer, family


@contextmanager
def reading_byte_order_marks() -> Iterator[None]:
    """Let PEFT read an adapter's config that begins with a byte order mark; its own reader refuses one."""
    from peft.config import PeftConfigMixin

    def read(path: str, **_: Any) -> dict[str, Any]:
        return {key: value for key, value in read_json(Path(path)).items() if key != "runtime_config"}

    mixin: Any = PeftConfigMixin
    own = mixin.__dict__["from_json_file"]
    mixin.from_json_file = staticmethod(read)
    try:
        yield
    finally:
        mixin.from_json_file = own


def skip_hub_lookup(base: str) -> None:
    """Let nnsight name a folder to a deployment by its path, without asking the Hub for its spelling."""
    from nnsight.modeling import huggingface

    if os.path.isabs(base):
        huggingface._ID_CACHE[base] = base


@contextmanager
def refusing(what: str, base: str) -> Iterator[None]:
    """Raise any error of transformers, PEFT or the Hub while a base loads as a `CheckpointError` of one sentence."""
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
    """Count the LoRA modules whose matrices equal the adapter's file; PEFT leaves missing ones at zero."""
    stored = read_tensors(adapter / "adapter_model.safetensors")
    lora = {name.replace(".default.", "."): p for name, p in module.named_parameters() if ".lora_" in name}
    expected = {name.partition(".lora_")[0] for name in lora}
    differing = []
    for name, parameter in lora.items():
        tensor = stored.pop(f"base_model.model.{name}", None)
        if tensor is None or not torch.equal(tensor.to(parameter), parameter):
            differing.append(name.partition(".lora_")[0])
    report = LoadReport(expected=len(expected), landed=len(expected - set(differing)))
    if differing or stored or not lora:
        first = min([*differing, *stored], default="none")
        raise CheckpointError(
            f"{adapter}: LoRA landed on {report.landed} of {report.expected} linear layers and {len(stored)} of its "
            f"tensors fit nowhere, the first is {first}; the adapter belongs to another base or is incomplete"
        )
    return report
