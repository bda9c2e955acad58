"""Read a TOML config and validate it; errors name the key, its value and what is expected."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from codi_tracing.configs import schema, train_schema
from codi_tracing.configs.files import LARGEST_CONFIG, read_utf8
from codi_tracing.configs.schema import RECORDS, Record, RunConfig, record_of
from codi_tracing.configs.train_schema import TrainConfig
from codi_tracing.configs.vocabulary import EXPERIMENTS


class ConfigError(ValueError):
    """A config that cannot be read; the message names all of its problems."""


OPTIONS = {"pairs.file": "--pairs", "pairs.limit": "--limit"}  # of the command line, where not the key's own name
CONFIG_TABLES: dict[str, type[Record]] = {
    "pairs": schema.PairsTable,
    "remote": schema.Remote,
    "tracking": schema.Tracking,
    "optimiser": train_schema.Optimiser,
    "architecture": train_schema.Architecture,
    "codi": train_schema.Codi,
}
# The top-level keys of each kind of config.
KEYS: dict[type[RunConfig] | type[TrainConfig], tuple[str, ...]] = {
    RunConfig: tuple(dict.fromkeys(key for record in RECORDS.values() for key in record.model_fields)),
    TrainConfig: tuple(TrainConfig.model_fields),
}
Config = TypeVar("Config", RunConfig, TrainConfig)


@cache
def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    paths = sorted(Path(__file__).parent.glob("*.toml"))
    return {path.stem: path for path in paths if path.stem != "model_shapes"}


def load_config(path: str | Path, kind: type[Config], **overrides: Any) -> Config:
    """Read a TOML file, or a shipped config by its name. Raises `ConfigError` with every problem at once.

    Paths become absolute. A value in `overrides` that is not `None` replaces the file's; `pairs__limit` is `limit` in
    `[pairs]`.
    """
    path = Path(path)
    name = path.name.removesuffix(".toml")
    by_name = name in shipped_configs() and len(path.parts) == 1 and not path.is_file()
    if by_name:
        path = shipped_configs()[name]
    values = _read_toml(path)
    for other, keys in KEYS.items():
        if set(values) <= set(keys) and not set(values) <= set(KEYS[kind]):
            raise ConfigError(f"{path}: is a config for `{other.command}`, expected one for `{kind.command}`")
    overrides = {key.replace("__", "."): value for key, value in overrides.items() if value is not None}
    if overrides.get("remote") is True and values.get("remote"):
        del overrides["remote"]  # a table has more than the switch
    for key, value in overrides.items():
        table, _, name = key.rpartition(".")
        inner = values.setdefault(table, {}) if table else values
        if isinstance(inner, dict):  # if it is no table, validation reports that
            inner[name] = value
    try:
        return kind.model_validate(values, context={"folder": path.parent, "by_name": by_name})
    except ValidationError as error:
        problems = [_sentence(problem, kind, values, overrides) for problem in error.errors()]
    raise ConfigError(f"{path}: {'; '.join(filter(None, problems))}")


def _read_toml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a TOML file")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; give a TOML config, or a shipped one by name: {', '.join(shipped_configs())}"
        )
    try:
        return tomllib.loads(read_utf8(path, LARGEST_CONFIG))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text, expected a TOML file; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML ({error}); correct that line") from None
    except ValueError:  # tomllib passes on Python's refusal of 4,301 digits
        raise ConfigError(f"{path}: has a number of more digits than can be read; correct that line") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply to be read; a config has one level of tables") from None


# What each of pydantic's error types expects; braces are filled from the error's context.
EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "model_type": "a table",
    "path_type": "a path in quotes",
    "string_too_short": "one character or more",
    "string_too_long": "{max_length} characters or fewer",
    "string_type": "text in quotes",
    "too_short": "one or more names",
    "tuple_type": "a list",
}
# What a key expects where the error type alone does not tell.
HINTS = {
    "host": 'a web address with http:// or https:// and no path, or "local"',
    "knockouts": "an attention edge: answer-question, answer-bot, answer-3, 4-1, or in one layer 4-1@2",
    "name": "letters, digits, '.', '_' and '-', the first a letter or a digit",
    "pairs": "a table: [pairs] and in it file = …",
    "remote": 'true, false, "local" or a table: [remote]',
}


def _sentence(
    problem: ErrorDetails, kind: type[Record], values: dict[str, Any], overrides: dict[str, Any]
) -> str | None:
    """One of pydantic's errors as a sentence; None where another error explains it."""
    loc, error = problem["loc"] or ("",), problem["type"]
    dotted = ".".join(_shortened(str(part)) for part in loc)
    if error == "extra_forbidden":
        return _unknown_key(str(loc[-1]), str(loc[0]) if len(loc) > 1 else None, dotted, kind, values)
    if error == "missing":
        return f"the key '{dotted}' is missing"
    if error == "rule":
        return problem["msg"]
    if error == "default_factory_not_called" or (error == "too_short" and problem["input"]):
        return None  # another key is wrong; or the items of this list are already refused one by one
    key = OPTIONS.get(dotted, f"--{dotted}") if dotted in overrides else f"'{dotted}'"
    template = EXPECTED.get(error)
    expected = template.format(**problem.get("ctx", {})) if template else problem["msg"]
    if error == "unknown_name":
        expected = _known_names(problem["input"], problem["ctx"]["known"])
    if error in ("model_type", "string_pattern_mismatch"):
        name = next(part for part in reversed(loc) if isinstance(part, str))  # a list's items have an index
        expected = HINTS.get(name, expected)
    return f"{key} is {_as_python(problem['input'])}, expected {expected}"


def _unknown_key(key: str, table: str | None, dotted: str, kind: type[Record], values: dict[str, Any]) -> str | None:
    """The sentence on a key that is no key here: one of another experiment, or of none; a near known key, or all.

    Of two keys that are equally near, the one in the same table is named.
    """
    record, experiment = kind, values.get("experiment", "sweep")
    if kind is RunConfig:
        record = record_of(values)
        if table is None and key in KEYS[RunConfig]:
            if experiment not in tuple(EXPERIMENTS):  # it can be a list or a table
                return None  # the unknown experiment is the problem
            own = [name for name in record.model_fields if name not in RunConfig.model_fields]
            text = f"'{key}' has no meaning in the experiment '{experiment}'; remove it"
            return f"{text}, it can be given {', '.join(own)}"
    tables = [name for name in record.model_fields if name in CONFIG_TABLES]
    known = {name: f"{inner}.{name}" for inner in tables for name in CONFIG_TABLES[inner].model_fields}
    known |= {name: name for name in record.model_fields}
    if table is not None:
        known |= {name: f"{table}.{name}" for name in CONFIG_TABLES[table].model_fields}
    if nearest := get_close_matches(key[:100], known, 1):
        return f"unknown key '{dotted}', the nearest known key is '{known[nearest[0]]}'"
    return f"unknown key '{dotted}'; the known keys are {', '.join(sorted(set(known.values())))}"


def _known_names(name: str, known: tuple[str, ...]) -> str:
    """The names that a key can have, and the nearest to a misspelt one."""
    nearest = get_close_matches(name[:100], known, 1) if len(known) > 2 else []
    names = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
    return names + "".join(f" (did you mean {other!r}?)" for other in nearest)


def _as_python(value: Any) -> str:
    """A value as Python writes it, shortened for a sentence."""
    try:
        return _shortened(repr(value))
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return "too long to be shown"


def _shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
