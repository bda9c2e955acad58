"""A CODI checkpoint folder: written, read and checked.

    <folder>/
      codi.json           the card: base, number of latents, answer prefix, special-token rule, dtype, provenance
      adapter/            a standard PEFT LoRA
      codi.safetensors    projection (prj.1, prj.3, prj.ln, upstream's names) and the vectors bot and eot

`base` in the card is a folder relative to the checkpoint's, or a Hugging Face id. The sizes of the projection and of
the special vectors are read off the tensors. Folders of version 1, with `thought.safetensors`, are read too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codi_tracing.configs.files import LARGEST_TEXT, FileRefused, read_utf8
from codi_tracing.traces.records import parse_json

DTYPES = ("float32", "bfloat16", "float16")
CARD, ADAPTER, TENSORS = "codi.json", "adapter", "codi.safetensors"
VERSION, VERSION_1_TENSORS = 2, "thought.safetensors"
SHIPPED = Path(__file__).parents[1] / "embedded"  # thought and bypass, over one base


class CheckpointError(ValueError):
    """The folder is no CODI checkpoint, or cannot be loaded exactly."""


def reason(error: Exception) -> str:
    """The first sentence of another library's error, cut and without control characters: it may quote a file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    sentence = first.partition(". ")[0].rstrip(".")
    shown = "".join(letter if letter.isprintable() else "�" for letter in sentence[:300])
    return shown if len(sentence) <= 300 else f"{shown}…"


def short_repr(value: Any) -> str:
    """A value's repr, cut to the length of a sentence."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return "too long to be shown"
    return text if len(text) <= 200 else f"{text[:200]}…"


def read_json(path: Path, most: int = LARGEST_TEXT) -> Any:
    """The value in a JSON file of at most `most` bytes."""
    try:
        return parse_json(read_utf8(path, most))
    except FileRefused as error:
        raise CheckpointError(f"{path}: {error.strerror}; restore the file") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8 text; restore the file") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; restore the file") from None


@dataclass(frozen=True)
class Card:
    """The content of `codi.json`: what the tensors do not tell about a checkpoint."""

    base: str
    n_latents: int
    answer_prefix: str = "The answer is:"
    remove_eos: bool = True  # BoT follows the question directly, without EOS between them
    dtype: str = "float32"
    revision: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def new_projection(d_model: int, prj_dim: int) -> nn.Sequential:
    """From a step's final hidden state to the next latent: Linear, GELU, Linear, LayerNorm."""
    return nn.Sequential(
        nn.Sequential(),  # upstream's dropout: keeps its names, prj.1 and prj.3
        nn.Linear(d_model, prj_dim),
        nn.GELU(),
        nn.Linear(prj_dim, d_model),
    ).append(nn.LayerNorm(d_model))


def named_tensors(module: nn.Sequential) -> dict[str, Tensor]:
    """The projection's tensors under upstream's names."""
    return {f"prj.{name.replace('4.', 'ln.')}": tensor for name, tensor in module.state_dict().items()}


def write_checkpoint(folder: Path, adapted: Any, project: nn.Sequential, bot: Tensor, eot: Tensor, card: Card):
    """Write a checkpoint folder from a PEFT model, its projection and its two special vectors.

    The card is deleted first and written last: a folder without it is no checkpoint, so that it is whole or absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    for adapter in adapted.peft_config.values():
        adapter.base_model_name_or_path = card.base  # not the path of its training
    adapted.save_pretrained(folder / ADAPTER, save_embedding_layers=False)  # which are frozen
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    write_tensors(folder, {**named_tensors(project), "bot": bot, "eot": eot})
    write_card(folder, card)


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `codi.safetensors`: the projection under upstream's names, and the vectors bot and eot."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)


def write_card(folder: Path, card: Card) -> None:
    """Write `codi.json`, completely or not at all."""
    text, unfinished = json.dumps({"version": VERSION, **asdict(card)}, indent=2), folder / f".{CARD}.tmp"
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(folder / CARD)


MOST_LATENTS = 1_024
CARD_FIELDS: dict[str, tuple[Any, str]] = {  # of a card: types, and how a sentence names them
    "base": (str, "a folder or a Hub id"), "n_latents": (int, "an integer"), "answer_prefix": (str, "text"),
    "remove_eos": (bool, "true or false"), "dtype": (str, "text"), "revision": (str | None, "text or null"),
    "provenance": (dict, "an object"),
}  # fmt: skip


def read_card(folder: Path) -> Card:
    """Read and check `codi.json`; unknown and missing keys are refused."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a CODI checkpoint folder (with {CARD} in it)")
    path = folder / CARD
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CARD} in it, so it is not a CODI checkpoint folder")
    if not isinstance(values := read_json(path), dict):
        raise CheckpointError(f"{path}: is a JSON {type(values).__name__}, expected an object")
    version = values.pop("version", 1)
    if type(version) is not int or version not in (1, VERSION):
        raise CheckpointError(
            f"{path}: 'version' is {short_repr(version)}, expected 1 or {VERSION}; update codi-tracing"
        )
    if unknown := sorted(set(values) - set(CARD_FIELDS)):
        raise CheckpointError(f"{path}: unknown key {short_repr(unknown[0])}; known: {', '.join(sorted(CARD_FIELDS))}")

    def refuse(key: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{path}: {key!r} is {short_repr(values.get(key))}, expected {expected}")

    for key, (types, expected) in CARD_FIELDS.items():
        value = values.get(key)
        if key in (*values, "base", "n_latents") and (
            not isinstance(value, types) or (types is int and isinstance(value, bool))
        ):
            raise refuse(key, expected)
    if not _can_be_a_path(values["base"]):
        raise refuse("base", CARD_FIELDS["base"][1])
    if not 1 <= values["n_latents"] <= MOST_LATENTS:
        raise refuse("n_latents", f"1 to {MOST_LATENTS:,}")
    if values.get("dtype", DTYPES[0]) not in DTYPES:
        raise refuse("dtype", ", ".join(DTYPES))
    return Card(**values)


def _can_be_a_path(text: str) -> bool:
    """Whether a file system accepts this name: no NUL, no half of a surrogate pair, not too long."""
    parts = text.encode("utf-8", "replace").split(b"/")
    return "\0" not in text and text.encode(errors="ignore").decode() == text and max(map(len, parts)) <= 255


def tensors_path(folder: Path) -> Path:
    """The file of projection, BoT and EoT: `codi.safetensors`, or else `thought.safetensors` of version 1."""
    path, old = folder / TENSORS, folder / VERSION_1_TENSORS
    return old if old.is_file() and not path.is_file() else path


def read_projection(folder: Path, d_model: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """The projection and the vectors BoT and EoT (fp32); names and shapes must be those of a base of this width."""
    path = tensors_path(folder)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, so the checkpoint has no projection; restore the file")
    tensors = read_tensors(path)
    first = tensors.get("prj.1.weight")
    with torch.device("meta"):  # shapes alone: a damaged file may name any size
        project = new_projection(
            d_model, first.shape[0] if first is not None and first.ndim == 2 and first.numel() else 1
        )
        expected = {**named_tensors(project), "bot": torch.empty(d_model), "eot": torch.empty(d_model)}
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}"
        )
    if unknown := sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"{path}: {len(unknown)} unexpected tensors, the first is {unknown[0][:200]}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            shapes = f"{list(tensors[name].shape)}, expected {list(tensor.shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}; it belongs to another base")
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; restore the file")
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
    """The base for `from_pretrained`: the folder that the card names if it exists, else its Hub id."""
    inside = (folder / card.base).resolve()
    if inside.is_dir():
        return str(inside)
    if card.base.startswith((".", "/")) or card.base.count("/") > 1 or card.base == "base":
        raise CheckpointError(f"{folder / CARD}: its base {card.base!r} is not a folder next to it; restore {inside}")
    return card.base


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: `name` itself if it exists, else the shipped checkpoint of that name."""
    shipped = SHIPPED / name
    return shipped if not Path(name).exists() and (shipped / CARD).is_file() else Path(name)
