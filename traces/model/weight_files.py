"""Files of weights, whole or in shards: no code in them is run, and every tensor must be whole."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from codi_tracing.traces.model.checkpoint import CheckpointError, read_json, read_tensors, reason

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks of old GPT-2 code
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them

StateDict = Mapping[str, Tensor]


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, its type and where it is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    name: str

    def read(self) -> Tensor:
        """Its values."""
        return read_state([self.path])[self.name]


def weight_files(where: str, names: Sequence[str] = MODEL_FILES, revision: str | None = None) -> list[Path]:
    """The first of these files in a folder, or in the Hub's cache, or all its shards; none if there is none."""
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        path = cached_file(where, name, _raise_exceptions_for_missing_entries=False, revision=revision)
        return None if path is None else Path(path)

    for name in names:
        if (whole := find(name)) is not None:
            return [whole]
        if (index := find(f"{name}.index.json")) is not None:
            found = {shard: find(shard) for shard in shards_in(index)}
            if missing := [shard for shard, path in found.items() if path is None]:
                raise CheckpointError(f"{where}: its file {missing[0]} is missing; restore it")
            return [path for path in found.values() if path is not None]
    return []


def shards_in(index: Path) -> list[str]:
    """The names of the shards that an index lists."""
    try:
        names = set(read_json(index)["weight_map"].values())
        if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
            raise ValueError("its shards are no file names")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is no index of shards ({reason(error)}); restore the file") from None
    return sorted(names)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Shape and type of every tensor in a file, from its header where it has one."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; restore the file")
    if path.suffix != ".safetensors":
        return {name: StoredTensor(tuple(t.shape), t.dtype, path, name) for name, t in read_state([path]).items()}
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(tuple(part.get_shape()), part_dtype(part.get_dtype()), path, name)
                for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason(error)}); restore the file") from None


def part_dtype(name: str) -> torch.dtype:
    """PyTorch's type for safetensors' name of it; any type that holds no plain number is `uint8`."""
    return {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}.get(
        name, torch.uint8
    )


def read_state(paths: Sequence[Path]) -> StateDict:
    """All tensors of a file or of its shards, memory-mapped if the format allows; nothing in them is executed."""
    state: dict[str, Tensor] = {}
    for path in paths:
        part = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
        for name, tensor in part.items():
            plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
            plain = plain and tensor.dtype in FLOATS and tensor.ndim > 0 and tensor.numel() > 0
            if not name.endswith(OLD_BUFFERS) and not plain:
                actual = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}, {tensor.layout}"
                expected = "expected plain float32, bfloat16 or float16 of one dimension or more"
                raise CheckpointError(f"{path}: {name} is {actual} on {tensor.device.type}; {expected}")
        if (stored := stored_bytes(path)) is not None and stored != (needed := needed_bytes(part)):
            raise CheckpointError(f"{path}: holds {stored} bytes of tensors, expected {needed}; restore the file")
        if both := sorted(set(state) & set(part)):
            raise CheckpointError(f"{path}: {both[0]} is in two shards; restore the files")
        state |= part
    return state


def read_pickle(path: Path) -> StateDict:
    """A state dict that torch.save wrote; only tensors are unpickled."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > entry.compress_size for entry in archive.infolist()):
                raise CheckpointError(f"{path}: is compressed, which torch.save does not do; save the plain state dict")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: refused, because it is damaged or holds Python objects, which could run code; save the plain "
            "state dict"
        ) from None
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise CheckpointError(f"{path}: cannot be read ({reason(error)}); restore the file") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise CheckpointError(f"{path}: holds no plain state dict (names to tensors); save model.state_dict()")
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
