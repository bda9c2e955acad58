"""Where the written values come from: another run of the row, or a function of what stands at the place.

Every forward holds three unpatched runs of a pair: `clean`, `corrupted` and `unrelated`, a run of another pair's
question of the same token count, so that positions agree. A source that is a *run* names the donor, given the host. The
unrelated donor is the control: writing *anything* into a run disturbs it, and only what the pair's own other run does
beyond that is specific. With several draws of it a place is *resampled*: an ablation that stays on the distribution.

A source that is a *value* computes what to write from `Values`; a new one is one more `Value` here. It has no meaning
for cache entries, whose keys carry positions. Ablations by zero, mean and noise: arXiv 2602.08783 does them per step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

RUNS = ("clean", "corrupted", "unrelated")  # a run's index is its segment and its cell; further draws stand behind
HOSTS = {"denoising": "corrupted", "noising": "clean"}


def other(host: str) -> str:
    """The pair's other run: clean values into the corrupted run, corrupted values into the clean one."""
    return "clean" if host == "corrupted" else "corrupted"


def itself(host: str) -> str:
    """The host's own run: writing it changes nothing, at every site."""
    return host


def unrelated(host: str) -> str:
    """A run of an unrelated pair: the zero line of a chart."""
    return "unrelated"


class Values(NamedTuple):
    """What stands at a place while a cell is written there, `[pair, width]`; the means are `[width]`."""

    own: Tensor  # the cell's own value
    host: Tensor  # that of the unpatched run which the cell writes into
    other: Tensor  # that of the pair's other run
    mean: Tensor  # over all usable pairs, both sides, and all steps
    step_mean: Tensor  # over all usable pairs and both sides, at this step
    noise: Tensor  # standard normal, seeded by pair and place


@dataclass(frozen=True)
class Value:
    """A source that computes what to write; `name` is its name in the table."""

    name: str
    write: Callable[[Values], Tensor]
    drawn: bool = False


zero = Value("zero", lambda v: v.host.new_zeros(v.host.shape))
mean = Value("mean", lambda v: v.mean.expand_as(v.host))
step_mean = Value("step_mean", lambda v: v.step_mean.expand_as(v.host))
# As long as what the other run would write, in a random direction.
noise = Value("noise", lambda v: v.noise * (v.other.norm(dim=-1) / v.noise.norm(dim=-1))[:, None], drawn=True)
# With the mean and the variance, over the width, of what the other run would write.
moments = Value("moments", lambda v: v.other.mean(-1)[:, None] + v.noise * v.other.std(-1)[:, None], drawn=True)


def steer(vector: Tensor, coefficient: float = 1.0, name: str = "steer") -> Value:
    """Add a vector of one's own, times a coefficient, to what stands there."""
    return Value(name, lambda v: v.own + coefficient * vector.to(v.own))


SOURCES: dict[str, Callable[[str], str] | Value] = {"other": other, "unrelated": unrelated}
SOURCES |= {value.name: value for value in (zero, mean, step_mean, noise, moments)}


def source_name(source, host: str) -> str:
    """The name in the table: `clean`, `corrupted`, `unrelated`, `self`, or a value's own."""
    if isinstance(source, Value):
        return source.name
    donor = source(host)
    return "self" if donor == host else donor
