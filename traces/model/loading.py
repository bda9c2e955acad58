"""Load a CODI checkpoint folder as an nnsight model, and check every tensor."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
    read_projection,
    reason,
)
from codi_tracing.traces.model.codi_model import CodiModel, LoadReport
from codi_tracing.traces.model.families import Family, family_of
from codi_tracing.traces.model.grouped_attention import NAME as GROUPED
from codi_tracing.traces.model.integrity import (
    LORA_PREFIX,
    check_base,
    check_config,
    check_lora,
    check_sizes,
    reading_byte_order_marks,
)
from codi_tracing.traces.model.model_files import model_files
from codi_tracing.traces.model.refusals import refusing
from codi_tracing.traces.model.tokenizer import open_tokenizer
from codi_tracing.traces.model.weight_files import StateDict


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
    name = card.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; use auto, float32, bfloat16 or float16")
    elsewhere = deployment is not None and deployment.host != "local"
    where, number = pick_device("cpu" if elsewhere else device), getattr(torch, name)
    opened = open_base(f"{folder}: its base", base, card.revision)
    if opened.meta is None and not elsewhere:
        raise CheckpointError(f"{folder}: its base {base} has no weights here (model.safetensors or pytorch_model.bin)")
    files = model_files(folder, base, card.revision, weights=not elsewhere)
    stored = check_lora(folder / ADAPTER, opened.meta, opened.family)
    project, bot, eot = read_projection(folder, opened.config.hidden_size)
    lm = _load_lm(opened, base, folder, card, where, number, deployment if elsewhere else None, adapted)
    model = CodiModel(
        lm=lm,
        tokenizer=opened.tokenizer,
        family=opened.family,
        project=project.to(where, number).requires_grad_(False),
        bot=bot.to(where, number),
        eot=eot.to(where, number),
        card=card,
        folder=folder,
        loaded=None if elsewhere else _compare_adapter(lm._module, stored, folder / ADAPTER),
        deployment=deployment,
        files=files,
    )
    _decide_options(model, elsewhere)
    return model


def _decide_options(model: CodiModel, elsewhere: bool) -> None:
    """Set what a config may change silently: evaluation mode, cache, outputs, attention; refuse values that overflow.

    On a deployment, each session sets evaluation mode (`remote.session`).
    """
    config, module = model.lm.config, model.lm._module
    window = getattr(config, "sliding_window", None)
    if window is not None and elsewhere:
        raise CheckpointError(f"{model.folder}: its base's attention slides over {window} tokens, expected all of them")
    config.use_cache, config.return_dict = True, True
    config.output_attentions, config.output_hidden_states = False, False
    if window is not None:  # no run may be longer; and the cache, which holds many runs, may not slide
        config.max_position_embeddings, config.sliding_window = min(window, model.n_positions), None
    shortest = model.n_latents + 4  # a token of the question, BoT, EoT, a token of the answer
    if model.n_positions < shortest:
        raise CheckpointError(f"{model.folder}: its base reads {model.n_positions} positions, a run needs {shortest}")
    if elsewhere:
        return
    if getattr(config, "num_key_value_heads", None) is not None:
        module.set_attn_implementation(GROUPED)
    module.eval()
    model.project.eval()
    for name, value in (*module.named_parameters(), *model.project.named_parameters(), ("bot", model.bot)):
        if not torch.isfinite(value).all():
            dtype = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{model.folder}: {name} holds NaN or infinity in {dtype}; restore it")


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
    if blank.files != model.files:
        raise CheckpointError(f"{model.folder}: its files changed after the model was loaded; run it again")
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


class OpenedBase(NamedTuple):
    """A base without its weights: its config, family and tokenizer, and its modules on the meta device.

    `meta` is None where no file of weights is here.
    """

    config: Any
    family: Family
    tokenizer: Any
    meta: nn.Module | None


def open_base(what: str, base: str, revision: str | None = None) -> OpenedBase:
    """Open a base after a check of its config, its files and its tokenizer; `what` it is begins an error."""
    from transformers import AutoConfig

    pinned: dict[str, Any] = {"revision": revision} if revision else {}
    check_sizes(base)
    with refusing(what, base):  # without trust_remote_code=False, transformers asks at the keyboard
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **pinned)
        family = family_of(config, base)
        check_config(config, base)
        meta = check_base(base, config, family, revision)
        return OpenedBase(config, family, open_tokenizer(base, revision, config.vocab_size), meta)


def _load_lm(
    opened: OpenedBase, base: str, folder: Path, card: Card, device: torch.device, dtype: torch.dtype,
    elsewhere: Remote | None = None, adapted: bool = True,
) -> Any:  # fmt: skip
    """The base under nnsight with the adapter; without weights if it runs `elsewhere`."""
    from nnsight.modeling.transformers import TransformersModel

    what = f"{folder}: its base"
    adapter, options = str((folder / ADAPTER).resolve()), {"device_map": device, "dispatch": True}
    if elsewhere is not None:  # the configs of base and adapter alone are read
        base, adapter, options = elsewhere.base or base, elsewhere.adapter or adapter, {}
        what = f"{folder}: for a deployment, with the adapter {adapter},"
    if card.revision:
        options["revision"] = card.revision
    skip_hub_lookup(base)
    with refusing(what, base), reading_byte_order_marks(), unchanged_random_state(device):
        return TransformersModel(
            base, task="text-generation", tokenizer=opened.tokenizer, peft=adapter if adapted else None, dtype=dtype,
            attn_implementation="sdpa", trust_remote_code=False, **options,
        )  # fmt: skip


@contextmanager
def unchanged_random_state(device: torch.device) -> Iterator[None]:
    """Leave the random state of torch, NumPy and Python as it was: PEFT draws matrices before it loads them."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def skip_hub_lookup(base: str) -> None:
    """Let nnsight name a folder to a deployment by its path, without asking the Hub for its spelling."""
    from nnsight.modeling import huggingface

    if os.path.isabs(base):
        huggingface._ID_CACHE[base] = base


def _compare_adapter(module: nn.Module, tensors: StateDict, adapter: Path) -> LoadReport:
    """Count the LoRA modules whose matrices equal the adapter's file; PEFT leaves missing ones at zero."""
    stored = dict(tensors)
    lora = {name.replace(".default.", "."): p for name, p in module.named_parameters() if ".lora_" in name}
    expected = {name.partition(".lora_")[0] for name in lora}
    differing = []
    for name, parameter in lora.items():
        tensor = stored.pop(f"{LORA_PREFIX}{name}", None)
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
