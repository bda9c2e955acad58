"""Slices of a run, computed apart (job arrays), joined into the run in one piece. No model is needed for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.folder import read_manifest
from analysis.table import write_whole
from patching.finish import finish
from patching.shards import FOLDER, ShardError, read_shard
from patching.store import MANIFEST, differences, locked, open_run


def merge_slices(folders: Sequence[Path], out: Path) -> Path:
    """Join the slices of one run into `out`: the very table of the run in one piece.

    Raises ValueError for folders that are no finished slices of one run, for slices that are given twice, and for
    those that are missing.
    """
    if not folders:
        raise ValueError("no slice was named, wanted the folders of all slices of one run")
    manifests = [(folder, slice_manifest(folder)) for folder in folders]
    (first, about), *others = manifests
    for folder, manifest in others:
        if manifest["identity"] != about["identity"]:
            told = differences({**manifest, "slice": None}, {**about, "slice": None})
            raise ValueError(f"{folder}: is of another run than {first} ({told}); merge slices of one run")
    count = int(about["slice"].partition("/")[2])
    given: dict[str, Path] = {}
    for folder, manifest in manifests:
        if (part := manifest["slice"]) in given:
            raise ValueError(f"{folder}: is slice {part}, as {given[part]} is; name each slice once")
        given[part] = folder
    if missing := [part for part in (f"{i}/{count}" for i in range(1, count + 1)) if part not in given]:
        raise ValueError(f"slice {', '.join(missing)} is missing; run it: codi run CONFIG --shard {missing[0]}")
    if len(given) > count:
        odd = next(part for part in given if not part.endswith(f"/{count}"))
        raise ValueError(f"{given[odd]}: is slice {odd}, but {first} is one of {count}; merge slices of one division")
    with locked(out):
        about = {**about, "slice": None, "seconds": round(sum(m.get("seconds", 0) for _, m in manifests), 1)}
        if open_run(out, about, fresh=False) is None:
            raise ValueError(f"{out}: holds this very run, finished; choose another with --out")
        (out / FOLDER).mkdir(exist_ok=True)
        for folder in given.values():
            for path in sorted((folder / FOLDER).glob("*.shard")):
                header, _ = read_shard(path)
                if header.identity != about["identity"]:
                    raise ShardError(f"{path}: is of another run than its folder; run the slice again")
                write_whole(out / FOLDER / path.name, path.read_bytes())
        for name in ("checks.json", "prepared_pairs.json"):
            write_whole(out / name, (first / name).read_bytes())
        return finish(out, about)


def slice_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished slice. Raises ValueError for what is none."""
    manifest = read_manifest(folder)
    part = manifest.get("slice")
    if not isinstance(part, str) or not re.fullmatch(r"[1-9][0-9]*/[1-9][0-9]*", part):
        raise ValueError(f"{folder}: is no slice of a run, wanted a folder that codi run --shard wrote")
    if not {"identity", "identity_of", "data"} <= set(manifest):
        raise ValueError(f"{folder / MANIFEST}: is another version's; run the slice again")
    if manifest.get("finished") is not True:
        raise ValueError(f"{folder}: slice {part} is not finished; run it again, it goes on where it stopped")
    return manifest
