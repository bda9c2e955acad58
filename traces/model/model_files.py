"""The files that a model is read from, and the SHA-256 of each: what makes two runs runs of one model.

Other files beside them (a trainer's optimizer, notes) do not count. Of a base on the Hub, the cached files are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from codi_tracing.traces.model.checkpoint import ADAPTER, CARD, CheckpointError, tensors_path
from codi_tracing.traces.model.weight_files import MODEL_FILES, weight_files

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
BASE_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", *(f"{name}.index.json" for name in MODEL_FILES),
)  # fmt: skip


class ModelFile(NamedTuple):
    """A file of a model, and its state on disk when it was found."""

    name: str  # in the manifest: adapter/… and base/… for theirs
    path: Path
    state: tuple[int, int, int]  # size, time of the last change in ns, inode


def model_files(folder: Path, base: str, revision: str | None = None, weights: bool = True) -> tuple[ModelFile, ...]:
    """The files of a checkpoint folder and of its base that loading reads; without the base's `weights` on request."""
    from transformers.utils.hub import cached_file

    def of_base(name: str) -> Path | None:
        path = cached_file(
            base, name, revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return None if path is None else Path(path)

    paths = {CARD: folder / CARD, tensors_path(folder).name: tensors_path(folder)}
    paths |= {f"adapter/{name}": folder / ADAPTER / name for name in ADAPTER_FILES}
    paths |= {f"base/{name}": path for name in BASE_FILES if (path := of_base(name)) is not None}
    if weights:
        paths |= {f"base/{path.name}": path for path in weight_files(base, revision=revision)}
    return tuple(ModelFile(name, path, _state(path)) for name, path in paths.items() if path.is_file())


def fingerprint(files: Sequence[ModelFile]) -> dict[str, str]:
    """The SHA-256 of each file by name; `CheckpointError` if one is not as it was when the model was loaded."""
    hashes = {}
    for file in files:
        try:
            hashes[file.name] = sha256_of(file.path)
            changed = _state(file.path) != file.state
        except FileNotFoundError:
            changed = True
        if changed:
            raise CheckpointError(f"{file.path}: changed after the model was loaded; load it again")
    return hashes


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino
