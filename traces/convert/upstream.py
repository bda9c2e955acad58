"""Upstream CODI's state dict, checked tensor by tensor against a base.

Upstream saves one state dict (`pytorch_model.bin` or `model.safetensors`, whole or in shards):

    codi.base_model.model.<module>.base_layer.weight      the base under an adapted module
    codi.base_model.model.<module>.lora_A.default.weight  [rank, in], and lora_B [out, rank]
    codi.base_model.model.<embedding>.weight              with three rows after the vocabulary: pad, BoT, EoT
    codi.base_model.model.<the rest of the base>
    prj.1.*, prj.3.*, prj.ln.*                            the projection
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from codi_tracing.traces.model.checkpoint import CheckpointError, named_tensors, new_projection
from codi_tracing.traces.model.families import Family
from codi_tracing.traces.model.loading import open_base
from codi_tracing.traces.model.refusals import refusing
from codi_tracing.traces.model.weight_files import OLD_BUFFERS, StateDict

BASE_PREFIX, LORA_A, LORA_B = "codi.base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"
PROJECTION = tuple(f"prj.{layer}.{name}" for layer in ("1", "3", "ln") for name in ("weight", "bias"))
NO_PLAIN_LORA = {  # in a tensor's name: what it is
    "lora_magnitude_vector": "a DoRA",
    "modules_to_save": "modules that were trained whole",
    "lora_embedding_": "an adapted embedding",
    "lm_head.lora_": "an adapted LM head",
    "lora_B.default.bias": "biases of a LoRA",
}
SPECIAL = 3  # rows after the vocabulary: pad, BoT, EoT


class PartCount(NamedTuple):
    """One line of the report: how many tensors of a part were expected, landed, are missing or unexpected."""

    part: str
    expected: int
    landed: int
    missing: int
    unexpected: int


class ConversionError(CheckpointError):
    """The source cannot be converted exactly; `report` counts its tensors, if they were read."""

    def __init__(self, sentence: str, report: Iterable[PartCount] = ()):
        self.report = tuple(report)
        super().__init__(sentence)


class LoadedBase(NamedTuple):
    """A base with its tokenizer, in its own dtype."""

    name: str
    lm: Any
    tokenizer: Any
    family: Family
    revision: str | None  # the commit, if it came from the Hub

    @property
    def embedding(self) -> str:
        return f"{self.family.decoder}.{self.family.embedding}.weight"

    @property
    def vocabulary(self) -> int:
        return self.lm.get_input_embeddings().weight.shape[0]


def load_base(name: str) -> LoadedBase:
    """Load a base with its tokenizer; its weights keep the stored dtype."""
    from transformers import AutoModelForCausalLM

    opened = open_base("the base", name)
    with refusing("the base", name):
        lm = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False)
    return LoadedBase(name, lm, opened.tokenizer, opened.family, None if Path(name).is_dir() else commit(name))


def commit(repository: str) -> str | None:
    """The commit of a Hub repository in the cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


class TensorNames(NamedTuple):
    """The tensor names of a CODI state dict over one base; `base` maps the base's own names to them."""

    modules: dict[str, nn.Module]  # the adapted modules, by the base's own names
    lora: set[str]
    base: dict[str, str]
    optional: set[str]  # a tied LM head, old buffers

    @property
    def required(self) -> set[str]:
        return (self.lora | set(self.base.values()) | set(PROJECTION)) - self.optional


def tensor_names(state: StateDict, lm: nn.Module, family: Family) -> TensorNames:
    """The names that `state` must have over this base; its own names tell which modules are adapted."""
    adapted = {name.removeprefix(BASE_PREFIX).partition(".lora_")[0] for name in state if ".lora_" in name}
    targets = {name.rpartition(".")[2] for name in adapted} & set(family.adapted)
    linear = [(name, module) for name, module in lm.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    modules: dict[str, nn.Module] = {name: module for name, module in linear if name.rpartition(".")[2] in targets}
    lora = {f"{BASE_PREFIX}{name}{side}" for name in modules for side in (LORA_A, LORA_B)}
    base = {}
    for name in lm.state_dict():
        module, _, leaf = name.rpartition(".")
        base[name] = f"{BASE_PREFIX}{module}.base_layer.{leaf}" if module in modules else BASE_PREFIX + name
    # Old GPT-2 code stored its causal masks in its attention `attn`.
    masks = {f"{BASE_PREFIX}{name}{end.removeprefix('.attn')}" for name, _ in lm.named_modules() for end in OLD_BUFFERS
             if name.endswith(".attn")}  # fmt: skip
    optional = (masks & set(state)) - set(base.values())
    return TensorNames(modules, lora, base, optional | ({base["lm_head.weight"]} if is_tied(lm) else set()))


def is_tied(lm: Any) -> bool:
    """Whether the base's LM head is its embedding."""
    return lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


def count_parts(state: StateDict, names: TensorNames, base: LoadedBase) -> list[PartCount]:
    """Expected, landed, missing and unexpected tensors of each part, and the special rows of the embedding."""
    stored, parts = set(state), []
    known = {"base": set(names.base.values()), "LoRA": names.lora, "projection": set(PROJECTION), "other": set()}
    stray = Counter(part_of(name) for name in stored - names.required - names.optional)
    for part, of_part in known.items():
        expected = of_part & names.required
        if expected or stray[part]:
            parts.append(PartCount(part, len(expected), len(expected & stored), len(expected - stored), stray[part]))
    table = state.get(names.base[base.embedding])
    rows = 0 if table is None else table.shape[0] - base.vocabulary
    landed = min(max(rows, 0), SPECIAL)
    return [*parts, PartCount("special rows", SPECIAL, landed, SPECIAL - landed, max(rows - SPECIAL, 0))]


def part_of(name: str) -> str:
    """Which part of a CODI model a tensor belongs to, by its name."""
    if name.startswith("prj."):
        return "projection"
    return ("LoRA" if ".lora_" in name else "base") if name.startswith(BASE_PREFIX) else "other"


def with_embedding(state: StateDict, base: LoadedBase) -> tuple[dict[str, Tensor], TensorNames]:
    """The state dict with its embedding, and its names: a file may store tied weights under the LM head alone."""
    state, names = dict(state), tensor_names(state, base.lm, base.family)
    embedding, head = names.base[base.embedding], names.base["lm_head.weight"]
    if is_tied(base.lm) and embedding not in state and head in state:
        state[embedding] = state[head]
    return state, names


def fault(state: StateDict, names: TensorNames, base: LoadedBase) -> str | None:
    """The first fault of the state dict over this base, as the end of a sentence."""
    stored = set(state)
    missing, unexpected = sorted(names.required - stored), sorted(stored - names.required - names.optional)
    for part, what in NO_PLAIN_LORA.items():
        if odd := sorted(name for name in stored if part in name):
            return f"holds {what} ({odd[0]}), expected a plain LoRA over the linear layers of the blocks"
    if not stored & set(PROJECTION):
        return "has no projection (prj.1, prj.3, prj.ln); give a model trained with use_prj"
    if not names.modules:
        return f"adapts none of {', '.join(base.family.adapted)}, so it is no CODI LoRA over {base.name}"
    table, head = (state.get(names.base[name]) for name in (base.embedding, "lm_head.weight"))
    if is_tied(base.lm) and table is not None and head is not None and not torch.equal(table, head):
        return f"its LM head differs from its embedding, and {base.name} has one matrix for both"
    if table is not None and table.shape[1:] == base.lm.get_input_embeddings().weight.shape[1:]:
        rows, expected = table.shape[0], base.vocabulary + SPECIAL
        counts = f"its embedding has {rows} rows, expected {expected}"
        if rows == base.vocabulary:
            return f"{counts}: the rows of pad, BoT and EoT are missing"
        if rows != expected:
            return f"{counts}; it was trained over another base than {base.name}"
    if missing or unexpected:
        counts = "; ".join(
            f"{len(some)} {kind}, the first is {some[0]}"
            for kind, some in (("missing", missing), ("unexpected", unexpected))
            if some
        )
        return f"its tensors do not fit: {counts}; it is incomplete or was trained over another base than {base.name}"
    return shape_fault(state, names, base) or value_fault(state, names, base)


def shape_fault(state: StateDict, names: TensorNames, base: LoadedBase) -> str | None:
    """The first tensor whose shape does not fit the base or the others."""
    d_model, rank, prj_dim = base.lm.config.hidden_size, lora_rank(state, names), state["prj.1.weight"].shape[0]
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(new_projection(d_model, prj_dim)).items()}
    for name, module in names.modules.items():
        n_in, n_out = features(module)
        shapes |= {f"{BASE_PREFIX}{name}{LORA_A}": (rank, n_in), f"{BASE_PREFIX}{name}{LORA_B}": (n_out, rank)}
    tables = {base.embedding, "lm_head.weight"}
    for own, tensor in base.lm.state_dict().items():
        extra = SPECIAL if own in tables else 0
        shapes[names.base[own]] = (tensor.shape[0] + extra, *tensor.shape[1:])
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != shape:
            both = f"{list(state[name].shape)}, expected {list(shape)}"
            return f"{name} has shape {both}; it was trained over another base than {base.name}"
    return None


def value_fault(state: StateDict, names: TensorNames, base: LoadedBase) -> str | None:
    """The first tensor of LoRA, projection or special rows that holds NaN or infinity."""
    own = {name: state[name] for name in (*sorted(names.lora), *PROJECTION)}
    own[names.base[base.embedding]] = state[names.base[base.embedding]][-SPECIAL:]
    for name, tensor in own.items():
        if not torch.isfinite(tensor).all():
            return f"{name} holds NaN or infinity: its training diverged; take an earlier checkpoint"
    return None


def features(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2 stores its weights transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return tuple(module.weight.shape)


def lora_rank(state: StateDict, names: TensorNames) -> int:
    """LoRA's rank in the first adapted module; `shape_fault` compares all others."""
    return state[f"{BASE_PREFIX}{next(iter(names.modules))}{LORA_A}"].shape[0]


def differing(state: StateDict, names: TensorNames, base: LoadedBase) -> list[str]:
    """The base tensors whose values differ from the base's, compared in the state dict's precision."""
    differ = []
    for own, tensor in base.lm.state_dict().items():
        if (name := names.base[own]) in state:
            stored = state[name][: base.vocabulary] if own in (base.embedding, "lm_head.weight") else state[name]
            if not torch.equal(tensor.to(stored.dtype), stored):
                differ.append(own)
    return differ
