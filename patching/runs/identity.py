"""Whose numbers a run's are: what two halves or two shards must share to be one run.

`identity_of` in the manifest holds the settings, the SHA-256 of each model file and of the pairs as they were read, the
dtype and the type of device; `identity` is its digest, and stands in every batch. The versions of the packages that
compute are compared apart: another version stops a resumption unless it is forced, and the manifest lists them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codi_tracing.analysis.io.run_folder import MANIFEST
from codi_tracing.analysis.io.text import short_json
from codi_tracing.patching.provenance import COMPUTING, digest

MOST_LISTED = 4  # differences in one sentence
OWNER_OF_FOLDER = {"base": "the base's ", "adapter": "the adapter's "}  # of model files, by their folder


def identity(settings: Mapping[str, Any], model: Mapping[str, Any], pairs: str) -> dict[str, Any]:
    """The manifest's `identity` and `identity_of`: of a config's settings, `CodiModel.describe` and the pairs' hash."""
    of = {
        "config": {key: value for key, value in settings.items() if key not in ("device", "dtype")},  # as resolved
        "model": model["files"],
        "deployment": model.get("deployment"),
        "pairs": pairs,
        "dtype": model["dtype"],
        "device": model["device"].partition(":")[0],
    }
    return {"identity": digest(of), "identity_of": of}


def differences(
    manifest: Mapping[str, Any], about: Mapping[str, Any], how: str = "changed since this run began"
) -> str:
    """How the run of a manifest differs from another, in words; `how` says it of a file."""
    if not isinstance(manifest.get("identity_of"), dict):
        return f"its {MANIFEST} is damaged or another version's"
    found = [
        _sentence(names, old, new, how) for names, old, new in unlike(manifest["identity_of"], about["identity_of"])
    ]
    if manifest.get("shard") != about["shard"]:
        found.append(f"it is {shard_name(manifest.get('shard'))}, not {shard_name(about['shard'])}")
    more = [f"and {len(found) - MOST_LISTED} more"] if len(found) > MOST_LISTED else []
    return "; ".join([*found[:MOST_LISTED], *more]) or "its identity is another"


def _sentence(names: Sequence[str], old: Any, new: Any, how: str) -> str:
    """One difference: settings with both values, files by name, for nobody knows a hash by heart."""
    if names[0] == "pairs":
        return f"the pairs {how}"
    if names[0] == "model" and len(names) > 1:
        folder, _, name = names[1].rpartition("/")
        file = OWNER_OF_FOLDER.get(folder, "the checkpoint's ") + name
        return f"{file} {how}" if old and new else f"{file} is {'not there' if new else 'only there'}"
    name = ".".join(names).removeprefix("config.")
    return f"{name} is {short_json(old, 40)} there, {short_json(new, 40)} now"


def unlike(old: Any, new: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """The leaves at which two nested dicts differ, by their keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from unlike(old.get(key), new.get(key), (*names, str(key)))
    elif old != new:
        yield names, old, new


def other_versions(manifest: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The packages whose versions can change numbers and differ, with both versions; empty if none is known to."""
    old, new = manifest.get("versions"), about["versions"]
    if not isinstance(old, dict):
        return ""
    unequal = [name for name in COMPUTING if old.get(name) != new.get(name)]
    return ", ".join(f"{name} is {old.get(name)} there, {new.get(name)} now" for name in unequal)


def versions_before(manifest: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The package versions under which a run was begun, if they differ from the present ones."""
    before = [*manifest.get("begun_under", []), manifest.get("versions")]
    others = [old for old in before if isinstance(old, dict) and old != about.get("versions")]
    return {"begun_under": others} if others else {}


def versions_of_shards(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All versions under which each shard was computed, by shard; empty if there are one's alone."""
    under = {shard["shard"]: [*shard.get("begun_under", []), shard.get("versions")] for shard in shards}
    several = any(each != [shards[0].get("versions")] for each in under.values())
    return {"versions_of_shards": under} if several else {}


def shard_name(shard: Any) -> str:
    return "the whole run" if shard is None else f"shard {shard}"
