"""A CODI checkpoint folder, written and read strictly.

    <folder>/
      codi.json               the card: base, latents, answer prefix, special-token rule, dtype, provenance
      adapter/                a standard PEFT LoRA
      thought.safetensors     projection (prj.1, prj.3, prj.ln, as upstream names them) and the vectors bot and eot

`base` in the card is a folder relative to the checkpoint's, or a Hugging Face id; several checkpoints over one base
name the same one. The projection's and the special vectors' sizes are read off the tensors, never configured.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DTYPES = ("float32", "bfloat16", "float16")
CARD, ADAPTER, THOUGHT = "codi.json", "adapter", "thought.safetensors"


SHIPPED = Path(__file__).parents[1] / "embedded"  # thought and bypass, over one base


class CheckpointError(ValueError):
    """The folder is not a CODI checkpoint that can be loaded exactly."""


def reason(error: Exception) -> str:
    """The first sentence of what another library says went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    sentence = first.partition(". ")[0].rstrip(".")
    return sentence if len(sentence) <= 500 else f"{sentence[:500]}…"  # it may quote a damaged file


def shown(value: Any) -> str:
    """A value as Python writes it, as much of it as a sentence bears."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return "too long to be shown"
    return text if len(text) <= 200 else f"{text[:200]}…"


@dataclass(frozen=True)
class Card:
    """What `codi.json` says: everything about a checkpoint that its tensors do not."""

    base: str
    n_latents: int
    answer_prefix: str = "The answer is:"
    remove_eos: bool = True  # whether BoT follows the question directly, without EOS between
    dtype: str = "float32"
    revision: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def projection(d_model: int, prj_dim: int) -> nn.Sequential:
    """From a step's final hidden state to the next latent: Linear, GELU, Linear, LayerNorm."""
    return nn.Sequential(
        nn.Sequential(),  # upstream's dropout: keeps its names, prj.1 and prj.3
        nn.Linear(d_model, prj_dim),
        nn.GELU(),
        nn.Linear(prj_dim, d_model),
    ).append(nn.LayerNorm(d_model))


def _names(module: nn.Sequential) -> dict[str, Tensor]:
    """The projection's tensors under upstream's names."""
    return {f"prj.{name.replace('4.', 'ln.')}": tensor for name, tensor in module.state_dict().items()}


def write_checkpoint(folder: Path, adapted: Any, project: nn.Sequential, bot: Tensor, eot: Tensor, card: Card):
    """Write a checkpoint folder from a PEFT model, its projection and its two special vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    for adapter in adapted.peft_config.values():
        adapter.base_model_name_or_path = card.base  # not the path that it was trained at
    adapted.save_pretrained(folder / ADAPTER, save_embedding_layers=False)  # they are frozen
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    write_thought(folder, {**_names(project), "bot": bot, "eot": eot})
    write_card(folder, card)


def write_thought(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `thought.safetensors`: the projection under upstream's names, and the vectors bot and eot."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, folder / THOUGHT)


def write_card(folder: Path, card: Card) -> None:
    (folder / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card:
    """Read `codi.json`, refusing a folder without one, unknown keys and missing keys."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a CODI checkpoint folder (with {CARD} in it)")
    path = folder / CARD
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CARD} in it, so it is not a CODI checkpoint folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); restore the file") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: found a JSON {type(values).__name__}, wanted an object")
    known = set(Card.__dataclass_fields__)
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"{path}: unknown key {shown(unknown[0])}; known are {', '.join(sorted(known))}")
    for key, kind in (("base", str), ("n_latents", int)):
        if not isinstance(values.get(key), kind) or isinstance(values.get(key), bool):
            raise CheckpointError(f"{path}: {key!r} is {shown(values.get(key))}, wanted a {kind.__name__}")
    optional = {
        "answer_prefix": (str, "text"), "remove_eos": (bool, "true or false"), "dtype": (str, "text"),
        "revision": (str | None, "text or null"), "provenance": (dict, "an object"),
    }  # fmt: skip
    for key, (kinds, wanted) in optional.items():
        if key in values and not isinstance(values[key], kinds):
            raise CheckpointError(f"{path}: {key!r} is {shown(values[key])}, wanted {wanted}")
    if not _can_be_a_path(values["base"]):
        raise CheckpointError(f"{path}: 'base' is {shown(values['base'])}, wanted a folder or a Hub id")
    if values["n_latents"] < 1:
        raise CheckpointError(f"{path}: 'n_latents' is {shown(values['n_latents'])}, wanted 1 or more")
    if values.get("dtype", DTYPES[0]) not in DTYPES:
        raise CheckpointError(f"{path}: 'dtype' is {shown(values['dtype'])}, wanted {', '.join(DTYPES)}")
    return Card(**values)


def _can_be_a_path(text: str) -> bool:
    """Whether a file system could have such a name: no NUL, no half of a character, and not too long."""
    parts = text.encode("utf-8", "replace").split(b"/")
    return "\0" not in text and text.encode(errors="ignore").decode() == text and max(map(len, parts)) <= 255


def read_thought(folder: Path, d_model: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """The projection and the vectors BoT and EoT (fp32), every tensor accounted for and of the base's width."""
    path = folder / THOUGHT
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, so the checkpoint has no projection and cannot think")
    tensors = read_tensors(path)
    first = tensors.get("prj.1.weight")
    with torch.device("meta"):  # sizes alone: a damaged file may claim any
        project = projection(d_model, first.shape[0] if first is not None and first.ndim == 2 and first.numel() else 1)
        wanted = {**_names(project), "bot": torch.empty(d_model), "eot": torch.empty(d_model)}
    if missing := sorted(set(wanted) - set(tensors)):
        raise CheckpointError(f"{path}: {len(missing)} of {len(wanted)} tensors are missing, the first is {missing[0]}")
    if unknown := sorted(set(tensors) - set(wanted)):
        raise CheckpointError(f"{path}: {len(unknown)} unexpected tensors, the first is {unknown[0][:200]}")
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            found, want = list(tensors[name].shape), list(tensor.shape)
            raise CheckpointError(f"{path}: {name} has shape {found}, wanted {want}; it belongs to another base")
    state = {name.removeprefix("prj.").replace("ln.", "4."): t for name, t in tensors.items() if name[:4] == "prj."}
    project.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return project.requires_grad_(False), tensors["bot"].float(), tensors["eot"].float()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; restore the file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)}); restore the file") from None


def base_location(folder: Path, card: Card) -> str:
    """The base as `from_pretrained` takes it: the folder the card points to where there is one, else its Hub id."""
    inside = (folder / card.base).resolve()
    if inside.is_dir():
        return str(inside)
    if card.base.startswith((".", "/")) or card.base.count("/") > 1 or card.base == "base":
        raise CheckpointError(f"{folder / CARD}: its base {card.base!r} is not a folder next to it; restore {inside}")
    return card.base


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint's own files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: `name` itself, or the shipped checkpoint of that name where no such folder exists."""
    shipped = SHIPPED / name
    return shipped if not Path(name).exists() and (shipped / CARD).is_file() else Path(name)
