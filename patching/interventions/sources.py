"""Sources of the written values: another run of the row, or a value computed at the site.

Every forward holds three unpatched runs of a pair: `clean`, `corrupted` and `unrelated`, a run of another pair's
question of the same token count, so that positions agree. A source that is a *run* names the donor, given the host. The
unrelated donor is the control: any write disturbs a run, and only the effect of the pair's own other run beyond that is
specific. Several draws of it are resampling ablation, which stays on the distribution.

A source that is a *value* computes what to write from `Values`; a new one is one more `Value` here. It is undefined for
cache entries, whose keys carry positions. arXiv 2602.08783 ablates each step by zero, mean and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

RUNS = ("clean", "corrupted", "unrelated")  # their indices in a row, of questions and of runs; further draws follow


def other(host: str) -> str:
    """The pair's other run: clean values into the corrupted run, corrupted values into the clean one."""
    return "clean" if host == "corrupted" else "corrupted"


def itself(host: str) -> str:
    """The host's own run: writing it changes nothing, at every site."""
    return host


def unrelated(host: str) -> str:
    """A run of an unrelated pair: the control."""
    return "unrelated"


class Values(NamedTuple):
    """Activations at the site that is written, `[pair, width]`; the means are `[width]`."""

    own: Tensor  # the cell's own value
    host: Tensor  # the unpatched host's
    other: Tensor  # the pair's other run's
    mean: Tensor  # over all usable pairs, both sides, and all steps
    step_mean: Tensor  # over all usable pairs and both sides, at this step
    noise: Tensor  # standard normal, seeded by pair and site


@dataclass(frozen=True)
class Value:
    """A source that computes what to write; `name` is its name in the table."""

    name: str
    write: Callable[[Values], Tensor]
    drawn: bool = False


zero = Value("zero", lambda v: v.host.new_zeros(v.host.shape))
mean = Value("mean", lambda v: v.mean.expand_as(v.host))
step_mean = Value("step_mean", lambda v: v.step_mean.expand_as(v.host))
# The norm of the other run's value, in a random direction.
noise = Value("noise", lambda v: v.noise * (v.other.norm(dim=-1) / v.noise.norm(dim=-1))[:, None], drawn=True)
# The mean and the variance over the width of the other run's value.
moments = Value("moments", lambda v: v.other.mean(-1)[:, None] + v.noise * v.other.std(-1)[:, None], drawn=True)


def steer(vector: Tensor, coefficient: float = 1.0, name: str = "steer") -> Value:
    """Add a vector, times a coefficient, to the cell's own value."""
    return Value(name, lambda v: v.own + coefficient * vector.to(v.own))


NAMED_SOURCES: dict[str, Callable[[str], str] | Value] = {"other": other, "unrelated": unrelated}
NAMED_SOURCES |= {value.name: value for value in (zero, mean, step_mean, noise, moments)}


def source_name(source, host: str) -> str:
    """The name in the table: `clean`, `corrupted`, `unrelated`, `self`, or a value's own."""
    if isinstance(source, Value):
        return source.name
    donor = source(host)
    return "self" if donor == host else donor
