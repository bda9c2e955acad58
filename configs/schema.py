"""The two kinds of config, their keys and rules. `configs/README.md` lists every key.

>>> load_config("configs/tiny.toml", RunConfig).directions
('denoising', 'noising')
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from codi_tracing.configs.vocabulary import (
    CONFIG_METRICS,
    CONFIG_SOURCES,
    DEFAULT_METRICS,
    DEFAULT_SOURCES,
    DIRECTIONS,
    EXPERIMENTS,
    GRID_KINDS,
    GRIDS,
    PROTOCOLS,
    ROUTES,
)

ONE_KIND = ("influence", "iterative", "matched")
# What a sweep may say of its grid, and which of it a ready-made experiment leaves open; the rest is its own.
OF_A_SWEEP = (
    "grid", "kinds", "sources", "freeze", "also_unfrozen", "metrics", "draws", "knockouts", "protocol", "beyond", "top", "matches",
    "extra_problems", "directions", "reinitialised",
)  # fmt: skip
OPEN: dict[str, tuple[str, ...]] = {
    "sweep": (
        "grid",
        "kinds",
        "sources",
        "freeze",
        "also_unfrozen",
        "metrics",
        "draws",
        "knockouts",
        "protocol",
        "directions",
        "reinitialised",
    ),
    "early_stop": ("draws", "beyond", "directions", "reinitialised"),
    "influence": ("kinds", "directions", "reinitialised"),
    "iterative": ("kinds", "directions", "reinitialised"),
    "matched": ("kinds", "matches", "extra_problems"),
    "original": ("reinitialised",),
    "attribution": ("kinds", "top", "directions", "reinitialised"),
    "shapley": ("directions", "reinitialised"),
}


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


def _one_of(names: Iterable[str]) -> AfterValidator:
    """A name of the vocabulary."""
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            expected = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
            raise PydanticCustomError("name", "{expected}", {"expected": expected})
        return name

    return AfterValidator(check)


# Numbers are strict, so that a quoted number or `true` is refused rather than guessed at.
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
CountFromZero = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
ConfigPath = Annotated[Path, AfterValidator(_beside_the_config)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Knockout = Annotated[str, Field(pattern=r"^(answer|[0-9]+)-(question|bot|[0-9]+)(@[0-9]+)?$")]

Experiment = Annotated[str, _one_of(EXPERIMENTS)]
Grid = Annotated[str, _one_of(GRIDS)]
Kind = Annotated[str, _one_of(GRID_KINDS)]
Source = Annotated[str, _one_of(CONFIG_SOURCES)]
Route = Annotated[str, _one_of(ROUTES)]
Protocol = Annotated[str, _one_of(PROTOCOLS)]
Direction = Annotated[str, _one_of(DIRECTIONS)]
Metric = Annotated[str, _one_of(CONFIG_METRICS)]


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
    grid: Annotated[tuple[Grid, ...], Field(min_length=1), AfterValidator(_each_once)] = ("layerwise",)
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1), AfterValidator(_each_once)] = ("resid",)
    sources: Annotated[tuple[Source, ...], Field(min_length=1), AfterValidator(_each_once)] = DEFAULT_SOURCES
    draws: Count = 1
    freeze: Annotated[tuple[Route, ...], AfterValidator(_each_once)] = ()
    also_unfrozen: bool = False
    knockouts: Annotated[tuple[Knockout, ...], AfterValidator(_each_once)] = ()
    protocol: Protocol = "latent_loop"
    beyond: CountFromZero = 2
    top: Count = 20
    matches: Count = 60
    extra_problems: CountFromZero = 0
    directions: Annotated[tuple[Direction, ...], Field(min_length=1), AfterValidator(_each_once)] = tuple(DIRECTIONS)
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1), AfterValidator(_each_once)] = DEFAULT_METRICS
    max_new_tokens: Count = 12
    cells_per_forward: Count | None = None
    pairs_per_batch: Count | None = None
    memory: Positive = 8.0
    merge_lora: bool = True
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
        kinds = values.get("kinds", GRID_KINDS if values.get("experiment") == "attribution" else ("resid",))
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
        if self.also_unfrozen and not self.freeze:
            raise PydanticCustomError(
                "rule",
                "'also_unfrozen' is true and 'freeze' names no route: no run is frozen; remove also_unfrozen or give freeze",
            )
        if self.experiment in ONE_KIND and (len(self.kinds) > 1 or "head" in self.kinds):
            text = "'kinds' is {kinds} in the experiment '{name}', wanted one of {known}: it writes whole steps"
            known = ", ".join(kind for kind in GRID_KINDS if kind != "head")
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
