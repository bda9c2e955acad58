"""A file of weights as a plain state dict: read safely, every tensor whole, and what an account of it looks like."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codi_tracing.traces.model.checkpoint import CheckpointError, read_tensors, reason

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old GPT-2 code stored; they are no weights

State = Mapping[str, Tensor]


class Part(NamedTuple):
    """One line of the report: how many tensors of a kind were expected and landed, and what became of them."""

    part: str
    expected: int
    landed: int
    missing: int
    unexpected: int


class ConversionError(CheckpointError):
    """The source cannot be converted exactly; `report` accounts for its tensors, as far as that was reached."""

    def __init__(self, sentence: str, report: Iterable[Part] = ()):
        self.report = tuple(report)
        super().__init__(sentence)


def read_state(path: Path) -> State:
    """All tensors of a weights file, mapped into memory where its format allows; nothing in it is ever executed."""
    state = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not name.endswith(OLD_BUFFERS) and not (plain and tensor.dtype in FLOATS and tensor.ndim and tensor.numel()):
            found = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}, {tensor.layout}"
            wanted = "wanted plain float32, bfloat16 or float16 of one dimension or more"
            raise ConversionError(f"{path}: {name} is {found} on {tensor.device.type}; {wanted}")
    if (stored := stored_bytes(path)) is not None and stored != (needed := needed_bytes(state)):
        raise ConversionError(f"{path}: holds {stored} bytes of tensors where {needed} are needed; restore the file")
    return state


def read_pickle(path: Path) -> State:
    """A state dict that torch.save wrote, without unpickling anything but tensors."""
    try:
        state = _load(path)
    except pickle.UnpicklingError:
        raise ConversionError(
            f"{path}: refused, because it is damaged or holds Python objects beside its tensors, which could run code; "
            "save the plain state dict"
        ) from None
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise ConversionError(f"{path}: cannot be read ({reason(error)}); restore the file") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise ConversionError(f"{path}: holds no plain state dict (names to tensors); save model.state_dict()")
    return state


def stored_bytes(path: Path) -> int | None:
    """How many bytes the records of a zipped state dict hold; None for other formats, checked as they are read.

    A file mapped into memory is not: a record that was cut short would be read on into the next.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)


def needed_bytes(state: State) -> int:
    """How many bytes the tensors' storages say that they have; tied tensors share one."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    return sum(storages.values())


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format of before torch 1.6
