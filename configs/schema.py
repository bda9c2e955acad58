"""The two kinds of config, their keys and rules. `configs/README.md` lists every key.

>>> load_config("configs/tiny.toml", RunConfig).directions
('denoising', 'noising')
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError


class ConfigError(ValueError):
    """A config that cannot be read; the message names all of its problems."""


def _beside_the_config(path: Path, info: ValidationInfo) -> Path:
    """A path in a config is relative to that file; one given in Python stays as it is."""
    if not info.context:
        return path
    try:
        return (info.context["folder"] / path.expanduser()).resolve()
    except (RuntimeError, ValueError):  # ~somebody, or a character that no path has
        raise PydanticCustomError("no_path", "a path that can exist") from None


def _each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("repeated", "each name once")
    return values


# Numbers are strict, so that a quoted number or `true` is refused rather than guessed at.
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
CountFromZero = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
ConfigPath = Annotated[Path, AfterValidator(_beside_the_config)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Cut = Annotated[str, Field(pattern=r"^(answer|[0-9]+)-(question|bot|[0-9]+)(@[0-9]+)?$")]
Direction = Literal["denoising", "noising"]
Metric = Literal[
    "kl_from_corrupted",
    "kl_to_clean",
    "logit_difference",
    "rms_logit_difference",
    "prediction_change",
    "answer",
    "answer_is_clean",
    "answer_is_corrupted",
    "js_to_clean",
    "entropy",
    "top_overlap",
    "logprob_clean",
    "logprob_corrupted",
    "kl_from_corrupted_at_eot",
    "kl_to_clean_at_eot",
    "logit_difference_at_eot",
    "rms_logit_difference_at_eot",
    "prediction_change_at_eot",
    "edit_norm",
    "edit_cosine",
]
Experiment = Literal[
    "sweep", "early_stop", "influence", "iterative", "matched", "placeholder", "attribution", "shapley"
]
Protocol = Literal["latent_loop", "placeholder"]
Grid = Literal["layerwise", "stepwise", "sitewise", "prefixes", "suffixes"]
Kind = Literal["latent", "resid", "attn", "mlp", "head", "kv"]
Source = Literal["other", "unrelated", "zero", "mean", "step_mean", "noise", "moments"]
Route = Literal["R", "K_T", "K_A"]
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
METRICS: tuple[Metric, ...] = Metric.__args__[:8]  # type: ignore[attr-defined]
ESTIMATED: tuple[Kind, ...] = ("latent", "resid", "attn", "mlp", "head", "kv")
ONE_KIND = ("influence", "iterative", "matched")
DEFAULT_SOURCES: tuple[Source, ...] = ("other", "unrelated", "noise")
# What a sweep may say of its grid, and which of it a ready-made experiment leaves open; the rest is its own.
OF_A_SWEEP = (
    "sites", "kinds", "sources", "freeze", "unheld", "metrics", "draws", "cuts", "protocol", "beyond", "top", "matches",
    "fresh", "directions", "reinitialised",
)  # fmt: skip
OPEN: dict[str, tuple[str, ...]] = {
    "sweep": (
        "sites",
        "kinds",
        "sources",
        "freeze",
        "unheld",
        "metrics",
        "draws",
        "cuts",
        "protocol",
        "directions",
        "reinitialised",
    ),
    "early_stop": ("draws", "beyond", "directions", "reinitialised"),
    "influence": ("kinds", "directions", "reinitialised"),
    "iterative": ("kinds", "directions", "reinitialised"),
    "matched": ("kinds", "matches", "fresh"),
    "placeholder": ("reinitialised",),
    "attribution": ("kinds", "top", "directions", "reinitialised"),
    "shapley": ("directions", "reinitialised"),
}


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pairs(Record):
    """Which pairs: a file, a filter, and how many. `both_correct` is measured under the checkpoint, never read."""

    file: ConfigPath
    filter: Literal["usable", "both_correct"] = "usable"
    limit: Count | None = None
    seed: Seed | None = None


class Tracking(Record):
    """Weights & Biases: offline writes into the run folder, online sends. It bears on nothing but who is told."""

    wandb: Literal["offline", "online"]
    project: Annotated[str, Field(min_length=1, max_length=128)] = "cot-exploration"
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Remote(Record):
    """A deployment of NDIF that runs the model instead of this machine: `true`, or a table.

    Without a host it is nnsight's own, the public one; `"local"` sends nothing and runs here what would be sent. The
    key is that of the environment variable NDIF_API_KEY, never a config's.
    """

    host: Annotated[str, Field(pattern=r"^(local|https?://[^\s/]+/?)$")] | None = None
    base: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    adapter: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    timeout: Positive = 3600.0
    retries: CountFromZero = 5
    cells_per_job: Count | None = None
    jobs: Count = 2


class RunConfig(Record):
    """A patching experiment: which checkpoint, which pairs, what is written where, what to measure."""

    command: ClassVar = "codi run"

    name: Name
    checkpoint: ConfigPath
    pairs: Pairs
    out: ConfigPath | None = None
    seed: Seed = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    experiment: Experiment = "sweep"
    sites: Annotated[tuple[Grid, ...], Field(min_length=1), AfterValidator(_each_once)] = ("layerwise",)
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1), AfterValidator(_each_once)] = ("resid",)
    sources: Annotated[tuple[Source, ...], Field(min_length=1), AfterValidator(_each_once)] = DEFAULT_SOURCES
    draws: Count = 1
    freeze: Annotated[tuple[Route, ...], AfterValidator(_each_once)] = ()
    unheld: bool = False
    cuts: Annotated[tuple[Cut, ...], AfterValidator(_each_once)] = ()
    protocol: Protocol = "latent_loop"
    beyond: CountFromZero = 2
    top: Count = 20
    matches: Count = 60
    fresh: CountFromZero = 0
    directions: Annotated[tuple[Direction, ...], Field(min_length=1), AfterValidator(_each_once)] = DIRECTIONS
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1), AfterValidator(_each_once)] = METRICS
    max_new_tokens: Count = 12
    cells_per_forward: Count | None = None
    pairs_per_batch: Count | None = None
    memory: Positive = 8.0
    merge: bool = True
    low_ceiling: Share = 0.5
    reinitialised: bool = False
    max_failed: Share = 0.5
    deterministic: bool = False
    remote: Remote | None = None
    tracking: Tracking | None = None

    @field_validator("pairs", mode="before")
    @classmethod
    def pairs_are_a_table(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise PydanticCustomError("rule", "'pairs' is a text, wanted a table: [pairs] and in it file = …")
        return value

    @field_validator("remote", mode="before")
    @classmethod
    def remote_is_a_switch_or_a_table(cls, value: Any) -> Any:
        switches = {True: {}, False: None, "local": {"host": "local"}}
        if isinstance(value, bool | str):
            if value not in switches:
                raise PydanticCustomError(
                    "rule", "'remote' is a text, wanted true, false, \"local\" or a table: [remote]"
                )
            return switches[value]
        return value

    @model_validator(mode="before")
    @classmethod
    def what_is_left_out_fits_the_rest(cls, values: Any) -> Any:
        """Attribution estimates every kind unless told otherwise; noise has no meaning in a cache entry."""
        if not isinstance(values, dict):
            return values
        kinds = values.get("kinds", ESTIMATED if values.get("experiment") == "attribution" else ("resid",))
        sources = ("other", "unrelated") if isinstance(kinds, list | tuple) and "kv" in kinds else DEFAULT_SOURCES
        return {"kinds": kinds, "sources": sources, **values}

    def settings(self) -> dict[str, Any]:
        """The keys that bear on the results, as JSON: neither where things are, nor what the experiment settles."""
        closed = {key for key in OF_A_SWEEP if key not in OPEN[self.experiment]}
        elsewhere = dict.fromkeys(("out", "checkpoint", "max_failed", "remote", "tracking", *closed), True)
        excluded: dict[str, Any] = {**elsewhere, "pairs": {"file"}}
        where = {} if self.remote is None else {"remote": self.remote.host or "nnsight's"}
        return self.model_dump(mode="json", exclude=excluded) | where

    @model_validator(mode="after")
    def an_experiment_brings_its_own_grid(self) -> Self:
        usual = {key: RunConfig.model_fields[key].default for key in OF_A_SWEEP} | {"sources": DEFAULT_SOURCES}
        given = [key for key in OF_A_SWEEP if getattr(self, key) != usual[key]]
        taken = [key for key in given if key not in OPEN[self.experiment]]
        taken = [key for key in taken if key != "sources" or self.sources != ("other", "unrelated")]
        if taken:
            text = "'{key}' has no meaning in the experiment '{name}'; remove it{offer}"
            offer = f", it can be given {', '.join(OPEN[self.experiment])}" if OPEN[self.experiment] else ""
            raise PydanticCustomError("rule", text, {"key": taken[0], "name": self.experiment, "offer": offer})
        if self.remote is not None and self.experiment == "attribution":
            text = "'remote' has no meaning in the experiment 'attribution': it computes gradients, here; remove it"
            raise PydanticCustomError("rule", text)
        if self.remote is not None and self.remote.host != "local" and self.reinitialised:
            text = "'reinitialised' is true and 'remote' is set: a deployment has trained weights alone; remove one"
            raise PydanticCustomError("rule", text)
        if self.unheld and not self.freeze:
            raise PydanticCustomError("rule", "'unheld' is true and 'freeze' names no route; every run is unheld then")
        if self.experiment in ONE_KIND and (len(self.kinds) > 1 or "head" in self.kinds):
            text = "'kinds' is {kinds} in the experiment '{name}', wanted one of {known}: it writes whole steps"
            known = ", ".join(kind for kind in ESTIMATED if kind != "head")
            values = {"kinds": ", ".join(self.kinds), "name": self.experiment, "known": known}
            raise PydanticCustomError("rule", text, values)
        return self


class Architecture(Record):
    """A small Llama, and how much of its chain of thought is written out."""

    d_model: Count = 64
    d_mlp: Count = 192
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2
    terse: Share = 0.0

    @model_validator(mode="after")
    def heads_divide_evenly(self) -> Self:
        if self.d_model % (2 * self.heads):
            text = "d_model is {d_model} with {heads} heads, wanted a multiple of {unit}, as rotary positions need"
            values = {"d_model": self.d_model, "heads": self.heads, "unit": 2 * self.heads}
            raise PydanticCustomError("rule", text, values)
        if self.heads % self.kv_heads:
            text = "heads is {heads}, wanted a multiple of kv_heads, which is {kv_heads}"
            raise PydanticCustomError("rule", text, {"heads": self.heads, "kv_heads": self.kv_heads})
        return self


class Optimiser(Record):
    """AdamW with warm-up and cosine decay."""

    steps: Count
    batch: Count
    lr: Positive


class Codi(Record):
    """CODI's self-distillation over a frozen base; what departs from the plain recipe is 0 by default."""

    n_latents: Count = 6
    rank: Count = 32
    alpha: Count = 32
    prj_dim: Count = 128
    distill_weight: Weight = 3.0
    hide_question: Share = 0.0
    decode_weight: Weight = 0.0
    decode_until: Share = 0.6
    curriculum: Share = 0.0
    start: ConfigPath | None = None


class TrainConfig(Record):
    """A training: of a base ([architecture]), or of a CODI model over one (`base` and [codi])."""

    command: ClassVar = "codi train"

    out: ConfigPath
    base: ConfigPath | None = None
    seed: Seed = 0
    threads: Count | None = None
    notes: str = ""
    optimiser: Optimiser
    architecture: Architecture | None = None
    codi: Codi | None = None

    @model_validator(mode="after")
    def one_kind_of_training(self) -> Self:
        if (self.architecture is None) == (self.codi is None):
            found = "neither" if self.codi is None else "both"
            text = (
                "found {found} of [architecture] and [codi], wanted [architecture] to train a base or [codi] over one"
            )
            raise PydanticCustomError("rule", text, {"found": found})
        if self.codi is not None and self.base is None:
            raise PydanticCustomError("rule", "[codi] needs a base to train over; set base to its folder")
        if self.architecture is not None and self.base is not None:
            raise PydanticCustomError("rule", "[architecture] trains a new base, so base has no meaning; remove one")
        return self


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
    "cuts": "an attention edge: answer-question, answer-bot, answer-3, 4-1, or in one layer 4-1@2",
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
        template = PATTERNS.get(str(key), PATTERNS["cuts"])  # of a list's items, the key is their place
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
