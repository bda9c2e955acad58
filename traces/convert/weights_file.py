"""Read a file of weights as a state dict: no code is run, and every tensor must be whole."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from codi_tracing.traces.model.checkpoint import CheckpointError, read_tensors, reason

UPSTREAM_FILES = ("model.safetensors", "pytorch_model.bin")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks of old GPT-2 code

StateDict = Mapping[str, Tensor]


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


def read_state(path: Path) -> StateDict:
    """All tensors of a weights file, memory-mapped if its format allows; nothing in it is executed."""
    state = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not name.endswith(OLD_BUFFERS) and not (plain and tensor.dtype in FLOATS and tensor.ndim and tensor.numel()):
            actual = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}, {tensor.layout}"
            expected = "expected plain float32, bfloat16 or float16 of one dimension or more"
            raise ConversionError(f"{path}: {name} is {actual} on {tensor.device.type}; {expected}")
    if (stored := stored_bytes(path)) is not None and stored != (needed := needed_bytes(state)):
        raise ConversionError(f"{path}: holds {stored} bytes of tensors, expected {needed}; restore the file")
    return state


def read_pickle(path: Path) -> StateDict:
    """A state dict that torch.save wrote; only tensors are unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ConversionError(
            f"{path}: refused, because it is damaged or holds Python objects, which could run code; save the plain "
            "state dict"
        ) from None
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise ConversionError(f"{path}: cannot be read ({reason(error)}); restore the file") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise ConversionError(f"{path}: holds no plain state dict (names to tensors); save model.state_dict()")
    return state


def stored_bytes(path: Path) -> int | None:
    """Bytes in the records of a zipped state dict, which memory mapping does not check; None for other formats."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)


def needed_bytes(state: StateDict) -> int:
    """Bytes of the tensors' storages; tied tensors share one."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    return sum(storages.values())
