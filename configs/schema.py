"""The config of a run: its keys and rules. `configs/README.md` lists every key.

The keys of every run are those of `RunConfig`; each experiment has a record that adds its own.

>>> load_config("tiny", RunConfig).directions
('denoising', 'noising')
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from codi_tracing.configs import vocabulary


def rule(text: str, **values: Any) -> PydanticCustomError:
    """An error that is a whole sentence."""
    return PydanticCustomError("rule", text, values)  # type: ignore[arg-type]


def _beside_the_config(path: Path, info: ValidationInfo) -> Path:
    """A path in a config is relative to that file; a path given in Python stays as it is.

    The paths of a shipped config found by its name are those of shipped files, or else as if the config stood in
    `configs/` under the current folder: nothing is written into the installation.
    """
    if not info.context:
        return path
    try:
        absolute = (info.context["folder"] / path.expanduser()).resolve()
        if info.context["by_name"] and not absolute.exists():
            return ("configs" / path).resolve()
    except (RuntimeError, ValueError):  # an unknown ~user, or a character that no path has
        raise PydanticCustomError("no_path", "a path that can exist") from None
    return absolute


def _each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("repeated", "each name once")
    return values


def _one_of(names: Iterable[str]) -> AfterValidator:
    """A name of the vocabulary."""
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            raise PydanticCustomError("unknown_name", "one of {known}", {"known": known})
        return name

    return AfterValidator(check)


def _one_kind(kinds: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    if len(kinds) > 1 or "head" in kinds:
        text = "'kinds' is {kinds} in the experiment '{name}', expected one of {known}: it writes whole steps"
        known = ", ".join(kind for kind in vocabulary.GRID_KINDS if kind != "head")
        raise rule(text, kinds=", ".join(kinds), name=info.data.get("experiment"), known=known)
    return kinds


def _trained_weights_alone(reinitialised: bool, info: ValidationInfo) -> bool:
    remote = info.data.get("remote")
    if reinitialised and remote is not None and remote.host != "local":
        raise rule("'reinitialised' is true and 'remote' is set: a deployment has trained weights alone; remove one")
    return reinitialised


def _something_frozen(also_unfrozen: bool, info: ValidationInfo) -> bool:
    if also_unfrozen and not info.data.get("freeze"):
        raise rule(
            "'also_unfrozen' is true and 'freeze' names no route: no run is frozen; remove also_unfrozen or give freeze"
        )
    return also_unfrozen


# Numbers are strict, so that a quoted number or `true` is refused and not converted.
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
CountFromZero = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Draws = Annotated[int, Field(strict=True, ge=1, le=1_000)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=4_096)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
ConfigPath = Annotated[Path, AfterValidator(_beside_the_config)]
SOME, ONCE = Field(min_length=1), AfterValidator(_each_once)
Kinds = Annotated[tuple[Annotated[str, _one_of(vocabulary.GRID_KINDS)], ...], SOME, ONCE]
OneKind = Annotated[Kinds, AfterValidator(_one_kind)]
Reinitialised = Annotated[bool, AfterValidator(_trained_weights_alone)]
Knockout = Annotated[str, Field(pattern=r"^(answer|[0-9]+)-(question|bot|[0-9]+)(@[0-9]+)?$")]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PairsTable(Record):
    """Which pairs: a file, a filter, and how many. `both_correct` is measured under the checkpoint."""

    file: ConfigPath
    filter: Literal["usable", "both_correct"] = "usable"
    limit: Count | None = None
    seed: Seed | None = None


class Tracking(Record):
    """Weights & Biases: offline writes into the run folder, online sends. It does not change results."""

    wandb: Literal["offline", "online"]
    project: Annotated[str, Field(min_length=1, max_length=128)] = "cot-exploration"
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Remote(Record):
    """A deployment of NDIF that runs the model instead of this machine: `true`, or a table.

    Without a host it is nnsight's own, the public one; `"local"` sends nothing and runs the same requests here. The key
    comes from the environment variable NDIF_API_KEY, never from a config.
    """

    host: Annotated[str, Field(pattern=r"^(local|https?://[^\s/@]+/?)$")] | None = None
    allow_http: bool = False
    base: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    adapter: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    timeout: Positive = 3600.0
    retries: Annotated[int, Field(strict=True, ge=0, le=1_000)] = 5
    cells_per_job: Count | None = None
    jobs: Annotated[int, Field(strict=True, ge=1, le=64)] = 2

    def asked(self) -> dict[str, str | None]:
        """What decides which model runs: the host, and the base and adapter where they are not the checkpoint's."""
        return {"host": self.host or "nnsight's", "base": self.base, "adapter": self.adapter}


class RunConfig(Record):
    """A patching experiment: the keys of every experiment.

    `RunConfig(…)` makes the record of the experiment that it names, as `pathlib.Path(…)` makes a `PosixPath`.
    """

    command: ClassVar = "codi run"

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    checkpoint: ConfigPath
    pairs: PairsTable
    out: ConfigPath | None = None
    seed: Seed = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    experiment: Annotated[str, _one_of(vocabulary.EXPERIMENTS)] = "sweep"
    max_new_tokens: Tokens = 12
    cells_per_forward: Count | None = None
    pairs_per_batch: Count | None = None
    memory: Positive = 8.0
    merge_lora: bool = True
    low_ceiling: Share = 0.5
    max_failed: Share = 0.5
    deterministic: bool = False
    remote: Remote | None = None
    tracking: Tracking | None = None

    def __new__(cls, /, **values: Any) -> Self:
        return super().__new__(record_of(values) if cls is RunConfig else cls)  # type: ignore[type-var, return-value]

    @model_validator(mode="wrap")
    @classmethod
    def is_the_record_of_its_experiment(cls, values: Any, handler: Any, info: ValidationInfo) -> Any:
        if cls is RunConfig and isinstance(values, dict):
            return record_of(values).model_validate(values, context=info.context)
        return handler(values)

    @field_validator("remote", mode="before")
    @classmethod
    def remote_is_a_switch_or_a_table(cls, value: Any) -> Any:
        switches = {True: {}, False: None, "local": {"host": "local"}}
        return switches.get(value, value) if isinstance(value, bool | str) else value

    def __getattr__(self, key: str) -> Any:
        """The default of a key that this experiment lacks and another has: `draws` is then 1."""
        for record in RECORDS.values():
            if key in record.model_fields:
                return record.model_fields[key].get_default(call_default_factory=True, validated_data={})
        raise AttributeError(f"a run's config has no key {key!r}")

    def settings(self) -> dict[str, Any]:
        """The keys that can change results, as JSON: without locations, tracking and the limit of failed pairs."""
        excluded: dict[str, Any] = dict.fromkeys(("out", "checkpoint", "max_failed", "remote", "tracking"), True)
        where = {} if self.remote is None else {"remote": self.remote.host or "nnsight's"}
        return self.model_dump(mode="json", exclude=excluded | {"pairs": {"file"}}) | where


class BothWays(RunConfig):
    """An experiment in either direction, on request once more on the model before training."""

    directions: Annotated[tuple[Annotated[str, _one_of(vocabulary.DIRECTIONS)], ...], SOME, ONCE] = tuple(
        vocabulary.DIRECTIONS
    )
    reinitialised: Reinitialised = False


class SweepConfig(BothWays):
    grid: Annotated[tuple[Annotated[str, _one_of(vocabulary.GRIDS)], ...], SOME, ONCE] = ("layerwise",)
    kinds: Kinds = ("resid",)
    # Noise has no meaning in a cache entry.
    sources: Annotated[tuple[Annotated[str, _one_of(vocabulary.CONFIG_SOURCES)], ...], SOME, ONCE] = Field(
        default_factory=lambda keys: (
            ("other", "unrelated") if "kv" in keys.get("kinds", ()) else vocabulary.DEFAULT_SOURCES
        )
    )
    draws: Draws = 1
    freeze: Annotated[tuple[Annotated[str, _one_of(vocabulary.ROUTES)], ...], ONCE] = ()
    also_unfrozen: Annotated[bool, AfterValidator(_something_frozen)] = False
    knockouts: Annotated[tuple[Knockout, ...], ONCE] = ()
    protocol: Annotated[str, _one_of(vocabulary.PROTOCOLS)] = "latent_loop"
    metrics: Annotated[tuple[Annotated[str, _one_of(vocabulary.CONFIG_METRICS)], ...], SOME, ONCE] = (
        vocabulary.DEFAULT_METRICS
    )


class EarlyStopConfig(BothWays):
    draws: Draws = 1
    beyond: Annotated[int, Field(strict=True, ge=0, le=1_000)] = 2


class WholeStepsConfig(BothWays):
    kinds: OneKind = ("resid",)


class MatchedConfig(RunConfig):
    kinds: OneKind = ("resid",)
    matches: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 60
    extra_problems: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0


class OriginalConfig(RunConfig):
    reinitialised: Reinitialised = False


class AttributionConfig(BothWays):
    kinds: Kinds = vocabulary.GRID_KINDS
    top: Count = 20

    @field_validator("remote")
    @classmethod
    def gradients_are_computed_here(cls, remote: Remote | None) -> None:
        if remote is not None:
            raise rule(
                "'remote' has no meaning in the experiment 'attribution': it computes gradients, here; remove it"
            )


RECORDS: dict[str, type[RunConfig]] = {
    "sweep": SweepConfig,
    "early_stop": EarlyStopConfig,
    "influence": WholeStepsConfig,
    "iterative": WholeStepsConfig,
    "matched": MatchedConfig,
    "original": OriginalConfig,
    "attribution": AttributionConfig,
    "shapley": BothWays,
}


def record_of(values: dict[str, Any]) -> type[RunConfig]:
    """The record of the experiment that a config's values name; a sweep's where they name none, or an unknown one."""
    name = values.get("experiment", "sweep")
    return RECORDS.get(name, SweepConfig) if isinstance(name, str) else SweepConfig
