"""Read a TOML config and validate it; errors name the key, what was found and what was expected."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    ValidationError,
)
from pydantic_core import ErrorDetails

from codi_tracing.configs.schema import (
    Architecture,
    Codi,
    Optimiser,
    Pairs,
    Record,
    Remote,
    RunConfig,
    Tracking,
    TrainConfig,
)


class ConfigError(ValueError):
    """A config that cannot be read; the message names all of its problems."""


OPTIONS = {"pairs.file": "--pairs", "pairs.limit": "--limit"}  # of the command line, where not the key's own name
TABLES: dict[str, type[Record]] = {
    "architecture": Architecture,
    "codi": Codi,
    "pairs": Pairs,
    "optimiser": Optimiser,
    "remote": Remote,
    "tracking": Tracking,
}
Config = TypeVar("Config", RunConfig, TrainConfig)


def load_config(path: str | Path, kind: type[Config], **instead: Any) -> Config:
    """Read a TOML file, its paths made absolute. Raises `ConfigError` with every problem at once.

    What is given in `instead`, and not `None`, replaces the file's value; `pairs__limit` is `limit` in `[pairs]`.
    """
    path = Path(path)
    values = _read_toml(path)
    for other in (RunConfig, TrainConfig):
        if set(values) <= set(other.model_fields) and not set(values) <= set(kind.model_fields):
            raise ConfigError(f"{path}: is a config for `{other.command}`, wanted one for `{kind.command}`")
    instead = {key.replace("__", "."): value for key, value in instead.items() if value is not None}
    if instead.get("remote") is True and values.get("remote"):
        del instead["remote"]  # a table says more than a switch
    for key, value in instead.items():
        table, _, name = key.rpartition(".")
        inner = values.setdefault(table, {}) if table else values
        if isinstance(inner, dict):  # where it is none, that is the problem to report
            inner[name] = value
    try:
        return kind.model_validate(values, context={"folder": path.parent})
    except ValidationError as error:
        problems = [_sentence(problem, kind, instead) for problem in error.errors() if not _echo(problem)]
    raise ConfigError(f"{path}: {'; '.join(problems)}")


def _read_toml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, wanted a TOML file")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give a TOML config, for instance configs/tiny.toml")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text, wanted a TOML file; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML ({error}); mend that line") from None
    except ValueError:  # tomllib passes on what Python says of 4,301 digits
        raise ConfigError(f"{path}: holds a number of more digits than can be read; mend that line") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply to be read; a config has one level of tables") from None


# Pydantic's error types in our words; braces are filled from what it reports.
WANTED = {
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
    "name": "{expected}",
    "no_path": "a path that can exist",
    "path_type": "a path in quotes",
    "string_too_short": "one character or more",
    "string_too_long": "{max_length} characters or fewer",
    "string_type": "text in quotes",
    "too_short": "one or more names",
    "tuple_type": "a list",
}


PATTERNS = {
    "host": 'a web address with http:// or https:// and no path, or "local"',
    "name": "letters, digits, '.', '_' and '-', the first a letter or a digit",
    "knockouts": "an attention edge: answer-question, answer-bot, answer-3, 4-1, or in one layer 4-1@2",
}


def _sentence(problem: ErrorDetails, kind: type[Record], instead: dict[str, Any]) -> str:
    """One of pydantic's findings in our words."""
    *table, key = problem["loc"] or ("",)
    dotted = ".".join(_cut(str(part)) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        nearest = _nearest(str(key), str(table[0]) if table else None, kind)
        return f"unknown key '{dotted}', the nearest known key is '{nearest}'"
    if problem["type"] == "missing":
        return f"the key '{dotted}' is missing"
    if problem["type"] == "rule":
        return problem["msg"]
    found = OPTIONS.get(dotted, f"--{dotted}") if dotted in instead else f"'{dotted}'"
    template = WANTED.get(problem["type"])
    if problem["type"] == "string_pattern_mismatch":
        template = PATTERNS.get(str(key), PATTERNS["knockouts"])  # of a list's items, the key is their place
    wanted = template.format(**problem.get("ctx", {})) if template else problem["msg"]
    return f"{found} is {_shown(problem['input'])}, wanted {wanted}"


def _shown(value: Any) -> str:
    """A value as Python writes it, as much of it as a sentence bears."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return "too long to be shown"


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _nearest(key: str, table: str | None, kind: type[Record]) -> str:
    """The known key that is most like `key`; of two equally like, the one in its own table."""
    tables = [name for name in kind.model_fields if name in TABLES]
    known = {name: f"{inner}.{name}" for inner in tables for name in TABLES[inner].model_fields}
    known |= {name: name for name in kind.model_fields}
    if table is not None:
        known |= {name: f"{table}.{name}" for name in TABLES[table].model_fields}
    return known[get_close_matches(key[:100], known, 1, 0)[0]]


def _echo(problem: ErrorDetails) -> bool:
    """Whether pydantic only counts, once more, the items of a list that it has already refused one by one."""
    return problem["type"] == "too_short" and bool(problem["input"])
