"""Compare the configs of a base and an adapter with the tensors in their files, before a model of that size is built.

transformers initialises a tensor that is missing from the file at random, and trusts any size in a config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from codi_tracing.traces.model.checkpoint import CheckpointError, read_json, reason

WEIGHTS, INDEX, LORA = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"

Shapes = Mapping[str, tuple[int, ...]]


def check_base(base: str, config: Any, revision: str | None = None) -> None:
    """Refuse a base whose files lack a tensor of its config's model, or hold one of another shape.

    A base without safetensors is left to transformers.
    """
    files = safetensors_of(base, revision)
    if not files:
        return
    stored = {name: shape for path in files for name, shape in shapes_of(path).items()}
    from transformers import AutoModelForCausalLM

    layers = config.num_hidden_layers
    if layers > len(stored):  # a layer has several tensors
        raise CheckpointError(f"{base}: its config has {layers} layers, its files {len(stored)} tensors; restore them")
    with torch.device("meta"):  # names and shapes alone
        model = AutoModelForCausalLM.from_config(config)
    prefix = f"{model.base_model_prefix}."  # absent from the files of a bare decoder
    tied = config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        if tied and name == "lm_head.weight":
            continue
        shape, expected = stored.get(name, stored.get(name.removeprefix(prefix))), tuple(parameter.shape)
        if shape is None:
            raise CheckpointError(f"{base}: its files lack {name}, which its config requires; restore them")
        if shape != expected:
            shapes = f"{list(shape)}, its config requires {list(expected)}"
            raise CheckpointError(f"{base}: {name} has shape {shapes}; restore them")


def safetensors_of(base: str, revision: str | None = None) -> list[Path]:
    """The base's safetensors in its folder or in the Hub's cache; none if its weights have another format."""
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        path = cached_file(base, name, _raise_exceptions_for_missing_entries=False, revision=revision)
        return None if path is None else Path(path)

    if (whole := find(WEIGHTS)) is not None:
        return [whole]
    if (index := find(INDEX)) is None:
        return []
    shards = {shard: find(shard) for shard in sorted(set(read_json(index)["weight_map"].values()))}
    if missing := [shard for shard, path in shards.items() if path is None]:
        raise CheckpointError(f"{base}: its file {missing[0]} is missing; restore it")
    return [path for path in shards.values() if path is not None]


def check_lora(adapter: Path) -> None:
    """Refuse an adapter that is no LoRA, or whose config names a rank that its file does not have."""
    path = adapter / "adapter_config.json"
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: is not the config of a LoRA ('peft_type' is not LORA); restore the file")
    ranks = {shape[0] for name, shape in shapes_of(adapter / LORA).items() if ".lora_A." in name and shape}
    pattern = config.get("rank_pattern") or {}
    asked = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [])]
    if odd := [rank for rank in asked if isinstance(rank, bool) or not isinstance(rank, int) or rank not in ranks]:
        stored = ", ".join(map(str, sorted(ranks))) or "none"
        raise CheckpointError(f"{path}: asks for the rank {str(odd[0])[:50]}, its file has {stored}; restore the file")


def shapes_of(path: Path) -> Shapes:
    """The shape of every tensor in a safetensors file, from its header."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; restore the file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)}); restore the file") from None
