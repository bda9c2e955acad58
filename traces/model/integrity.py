"""Compare the configs of a base and an adapter with the tensors in their files, before a model of that size is built.

transformers initialises a tensor that is missing from the file at random, drops one that it does not know, and trusts
any size in a config; PEFT leaves missing matrices at zero. Here each of these is refused, whatever the file's format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codi_tracing.configs.files import LARGEST_CONFIG, LARGEST_TEXT
from codi_tracing.traces.model.checkpoint import CheckpointError, read_json, reason, short_repr
from codi_tracing.traces.model.families import Family
from codi_tracing.traces.model.lora_patterns import check_patterns
from codi_tracing.traces.model.weight_files import (
    FLOATS,
    OLD_BUFFERS,
    StateDict,
    StoredTensor,
    read_state,
    stored_tensors,
    weight_files,
)

LORA_FILES = ("adapter_model.safetensors", "adapter_model.bin")
NOT_IN_MODEL = (*OLD_BUFFERS, ".rotary_emb.inv_freq")  # buffers that older code stored
LENGTH_FREE_ROPE = ("default", "linear", "llama3", "yarn")  # position codes that do not depend on the longest question
# The options of a plain LoRA; every other one has to be unset.
PLAIN_LORA = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "bias",
    "megatron_core", "qalora_group_size", "runtime_config", "loftq_config",
}  # fmt: skip
LORA_PREFIX = "base_model.model."
DROPPED_INITS = (True, False, None, "gaussian", "orthogonal")  # which leave the base as it is


def check_config(config: Any, base: str) -> None:
    """Refuse a base whose config asks for what the loop cannot do exactly."""
    if getattr(config, "quantization_config", None):
        raise CheckpointError(f"{base}: its weights are quantised, expected float32, bfloat16 or float16")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if odd := sorted(kinds - set(LENGTH_FREE_ROPE)):
        raise CheckpointError(
            f"{base}: its rotary positions are of type {odd[0]!r}, which change with the longest question of a batch; "
            f"supported are {', '.join(LENGTH_FREE_ROPE)}"
        )


def check_sizes(base: str) -> None:
    """Refuse a base's folder with a text file (config, tokenizer, …) that is too large to be parsed."""
    for path in Path(base).iterdir() if os.path.isdir(base) else ():
        if (
            path.suffix in (".json", ".txt", ".model", ".jinja")
            and path.is_file()
            and path.stat().st_size > LARGEST_TEXT
        ):
            raise CheckpointError(f"{path}: is larger than {LARGEST_TEXT / 2**20:,.0f} MiB; restore the file")


def check_base(base: str, config: Any, family: Family, revision: str | None = None) -> nn.Module | None:
    """The base on the meta device; refused if its files lack a tensor of it, or hold another shape, type or tensor.

    None where no file of weights is here.
    """
    if os.path.isfile(os.path.join(base, "adapter_config.json")):
        raise CheckpointError(f"{base}: is an adapter over another base (adapter_config.json), expected a whole model")
    files = weight_files(base, revision=revision)
    if not files:
        return None
    stored = {name: tensor for path in files for name, tensor in stored_tensors(path).items()}
    from transformers import AutoModelForCausalLM

    layers = config.num_hidden_layers
    if layers > len(stored):  # a layer has several tensors
        raise CheckpointError(f"{base}: its config has {layers} layers, its files {len(stored)} tensors; restore them")
    with torch.device("meta"):  # names and shapes alone
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    prefix = f"{model.base_model_prefix}."  # absent from the files of a bare decoder
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    named = {name if name in expected else prefix + name: tensor for name, tensor in stored.items()}
    head, table = "lm_head.weight", f"{family.decoder}.{family.embedding}.weight"
    if config.tie_word_embeddings:
        expected.pop(head, None)
        check_tied(base, named.pop(head, named.pop(prefix + head, None)), named.get(table))
    for name, shape in expected.items():
        if (tensor := named.pop(name, None)) is None:
            raise CheckpointError(f"{base}: its files lack {name}, which its config requires; restore them")
        if tensor.shape != shape:
            shapes = f"{list(tensor.shape)}, its config requires {list(shape)}"
            raise CheckpointError(f"{base}: {name} has shape {shapes}; restore them")
        if tensor.dtype not in FLOATS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{base}: {name} holds {dtype}, expected float32, bfloat16 or float16")
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    unknown = [n for n in named if not n.endswith(NOT_IN_MODEL) and not any(p.search(n) for p in ignored)]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"{base}: its files hold {named[min(unknown)].name[:200]}, which fits nowhere in the model of its config"
            f"{more}; restore config.json or the weights"
        )
    return model


def check_tied(base: str, head: StoredTensor | None, table: StoredTensor | None) -> None:
    """Refuse files whose LM head differs from the embedding although the config makes them one matrix."""
    if head is not None and table is not None and not torch.equal(head.read(), table.read()):
        raise CheckpointError(
            f"{base}: its LM head differs from its embedding, and its config has one matrix for both "
            "('tie_word_embeddings' is true); set that to false"
        )


def check_lora(adapter: Path, base: nn.Module | None, family: Family) -> StateDict:
    """The tensors of an adapter; refused, with the cause, unless it is a whole and plain LoRA that fits the base."""
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, so the LoRA is missing; restore it")
    config = read_json(path, LARGEST_CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: is not the config of a LoRA ('peft_type' is not LORA); restore the file")
    set_options = {key: value for key, value in config.items() if key not in PLAIN_LORA and value}
    if config.get("bias", "none") != "none":
        set_options["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in DROPPED_INITS:
        set_options["init_lora_weights"] = config["init_lora_weights"]
    if set_options:
        key, value = next(iter(sorted(set_options.items())))
        raise CheckpointError(
            f"{path}: {key!r} is {short_repr(value)}, expected a plain LoRA, which adds B A to linear layers and "
            "changes nothing else; merge what is more into the base"
        )
    if not (files := weight_files(str(adapter), LORA_FILES)):
        raise CheckpointError(f"{adapter}: holds neither {' nor '.join(LORA_FILES)}; restore the file")
    tensors = read_state(files)
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    pattern = config.get("rank_pattern") or {}
    asked = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [])]
    if odd := [rank for rank in asked if isinstance(rank, bool) or not isinstance(rank, int) or rank not in ranks]:
        stored = ", ".join(map(str, sorted(ranks))) or "none"
        raise CheckpointError(f"{path}: asks for the rank {short_repr(odd[0])}, its file has {stored}; restore it")
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(
            f"{files[0]}: {min(broken)} holds NaN or infinity: its training diverged; take an earlier checkpoint"
        )
    if base is not None:
        compare_names(adapter, tensors, base, family)
    return tensors


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


def compare_names(adapter: Path, tensors: StateDict, base: nn.Module, family: Family) -> None:
    """Refuse an adapter whose tensors are not those that its config has over this base, by name and shape.

    `base` is on the meta device, and keeps the adapter.
    """
    import peft

    adapted = {name.removeprefix(LORA_PREFIX).partition(".lora_")[0] for name in tensors if ".lora_" in name}
    if other := sorted(name for name in adapted if name.rpartition(".")[2] not in family.adapted):
        raise CheckpointError(f"{adapter}: adapts {other[0]}, expected only {', '.join(family.adapted)} of each block")
    if other := sorted(name for name in tensors if ".lora_" not in name):
        raise CheckpointError(f"{adapter}: holds {other[0][:200]}, which is no matrix of a LoRA; remove it")
    path = adapter / "adapter_config.json"
    check_patterns(path, read_json(path, LARGEST_CONFIG), [name for name, _ in base.named_modules()])
    try:
        with torch.device("meta"), reading_byte_order_marks():
            peft.inject_adapter_in_model(peft.PeftConfig.from_pretrained(str(adapter)), base)
    except Exception as error:  # a damaged config makes PEFT raise anything
        raise CheckpointError(f"{adapter}: fits no layer of its base ({reason(error)})") from error
    expected = {
        f"{LORA_PREFIX}{name.replace('.default.', '.')}": tuple(parameter.shape)
        for name, parameter in base.named_parameters()
        if ".lora_" in name
    }
    for names, fault in (
        (set(expected) - set(tensors), "tensors that its config requires are missing; it is incomplete"),
        (set(tensors) - set(expected), "of its tensors fit no layer that its config names; it belongs to another base"),
    ):
        if names:
            first = min(names).removeprefix(LORA_PREFIX)[:200]
            raise CheckpointError(f"{adapter}: {len(names)} {fault} (the first is {first})")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            shapes = f"{list(tensors[name].shape)}, expected {list(shape)}"
            raise CheckpointError(
                f"{adapter}: {name.removeprefix(LORA_PREFIX)} has shape {shapes}; it belongs to another base"
            )
