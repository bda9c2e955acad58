"""Intervention sites: which activations can be patched, and the grids of sites that a sweep covers.

A site names a kind, layers, steps and heads; `None` means all of them. Layers, steps and heads are 0-based and read off
the model.

| kind | what is written |
|---|---|
| `latent` | the embedding fed at a step |
| `resid` | a block's output at a step |
| `attn`, `mlp` | the output of a block's attention, or MLP, added to the residual stream at a step |
| `head` | one head's slice of the input of the attention's output projection |
| `kv` | a step's cache entry at a layer, after the step's own forward: only later positions read it |
| `thought` | the answer reads the donor's entries of all steps and layers |
| `question`, `bot` | later positions read the donor's entries of the question's tokens, or of BoT |

`thought`, `question` and `bot` are segments of the cache, exchanged by the attention mask. `resid` at every layer and
step is not the same as `thought`, since layer 0's entry of step 0 comes from the latent that BoT produced.

An edit leaves its step on three edges, each of which `freeze` can hold at the host's unpatched value: R (projection to
the next latent), K_T (its cache entry as later steps read it), K_A (the same as EoT, prefix and answer read it).
`between` freezes all other steps instead, so that each later position reads the edit directly.
Heimersheim and Nanda (2404.15255) and Zhang and Nanda (2309.16042) describe the method on ordinary transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, Protocol

from codi_tracing.configs.vocabulary import FREEZABLE, SEGMENTS, SITE_KINDS


class Sized(Protocol):
    """The sizes of a model that define its sites."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_latents(self) -> int: ...
    @property
    def n_heads(self) -> int: ...


class Site(NamedTuple):
    """One position of the thought, or a window of layers or steps; the module's docstring lists the kinds."""

    kind: str
    layer: int | None = None
    layer_last: int | None = None
    step: int | None = None
    step_last: int | None = None
    head: int | None = None
    step_set: tuple[int, ...] = ()  # instead of step and step_last, if the steps are no interval

    def places(self, model: Sized) -> set[tuple[int, int]]:
        """Every (layer, step) that the site covers; ValueError for a kind, layer, step or head that does not exist."""
        if self.kind not in SITE_KINDS:
            raise ValueError(f"site {self.kind!r} is unknown; use {', '.join(SITE_KINDS)}")
        if self.kind in SEGMENTS and self != Site(self.kind):
            raise ValueError(f"site {self.kind!r} is a whole segment of the cache; it has no layer, step or head")
        if self.kind == "latent" and (self.layer, self.layer_last) != (None, None):
            raise ValueError("site 'latent' is what is fed before the first layer; it has steps, but no layer")
        if (self.head is None) == (self.kind == "head"):
            rule = "names one head" if self.kind == "head" else "has no head"
            raise ValueError(f"site {self.kind!r} {rule}; found head {self.head}")
        _span(self.head, self.head, model.n_heads, "head")
        layers = _span(self.layer, self.layer_last, model.n_layers, "layer")
        return {(layer, step) for layer in layers for step in self.steps(model)}

    def steps(self, model: Sized) -> Sequence[int]:
        """The latent steps that the site covers, in order."""
        if not self.step_set:
            return _span(self.step, self.step_last, model.n_latents, "step")
        if (self.step, self.step_last) != (None, None):
            raise ValueError(f"site {self.kind!r} names step {self.step} and a set of steps; name one or the other")
        if sorted(set(self.step_set)) != list(self.step_set):
            raise ValueError(f"a set of steps names each once and in order; found {self.step_set}")
        _span(self.step_set[0], self.step_set[-1], model.n_latents, "step")
        return self.step_set


def first_step(model: Sized, site: Site, knockouts: Sequence[object] = ()) -> int:
    """The first latent step at which a cell can differ from its host, and so has to be computed."""
    if knockouts or site.kind in ("question", "bot"):
        return 0
    if site.kind == "thought":
        return model.n_latents  # only the answer sees it
    return site.steps(model)[0] + (site.kind == "kv" and site.layer is None)  # an entry is read from the next step on


def _span(first: int | None, last: int | None, size: int, what: str) -> range:
    if first is None:
        if last is not None:
            raise ValueError(f"a window to {what} {last} names no first {what}; name both")
        return range(size)
    last = first if last is None else last
    if not 0 <= first <= last < size:
        raise ValueError(f"{what} {first}-{last} does not exist; this model has {what}s 0 to {size - 1}")
    return range(first, last + 1)


def check_freeze(freeze: Sequence[str]) -> None:
    """Refuse unknown and repeated routes."""
    if unknown := [route for route in freeze if route not in FREEZABLE]:
        raise ValueError(f"freeze {unknown[0]!r} is unknown; use {', '.join(FREEZABLE)}")
    if len(set(freeze)) < len(freeze):
        raise ValueError(f"freeze names a route twice ({', '.join(freeze)}); name each once")


THOUGHT, QUESTION, BOT = Site("thought"), Site("question"), Site("bot")


def resid(layer: int, step: int | None = None) -> Site:
    """The residual stream after one block, at one step or at all."""
    return Site("resid", layer, layer, step, step)


def layerwise(model: Sized, kind: str = "resid") -> list[Site]:
    """One layer at all steps; with `resid`, the original experiment's grid."""
    return [Site(kind, layer, layer) for layer in range(model.n_layers)]


def stepwise(model: Sized, kind: str = "resid") -> list[Site]:
    """One step, all layers."""
    return [Site(kind, None, None, step, step) for step in range(model.n_latents)]


def sitewise(model: Sized, kind: str = "resid") -> list[Site]:
    """Layer × step: each single site."""
    return [Site(kind, layer, layer, step, step) for layer in range(model.n_layers) for step in range(model.n_latents)]


def headwise(model: Sized, layer: int) -> list[Site]:
    """Head × step, in one layer."""
    return [
        Site("head", layer, layer, step, step, head) for head in range(model.n_heads) for step in range(model.n_latents)
    ]


def prefixes(model: Sized, kind: str = "resid") -> list[Site]:
    """All layers at steps 0 to k, for every k."""
    return [Site(kind, None, None, 0, step) for step in range(model.n_latents)]


def suffixes(model: Sized, kind: str = "resid") -> list[Site]:
    """All layers at steps k to the last, for every k."""
    return [Site(kind, None, None, step, model.n_latents - 1) for step in range(model.n_latents)]


GRID_SITES = {grid.__name__: grid for grid in (layerwise, stepwise, sitewise, prefixes, suffixes)}


def expand(model: Sized, grids: Sequence[str], kinds: Sequence[str]) -> list[Site]:
    """The sites of several grids and kinds, each once; heads one by one. ValueError for a grid that a kind lacks."""
    sites: list[Site] = []
    for kind in kinds:
        for grid in grids:
            if kind == "latent" and grid in ("layerwise", "sitewise"):
                raise ValueError(
                    f"grid {grid!r} goes through layers, which kind 'latent' does not have; use stepwise for it"
                )
            members = GRID_SITES[grid](model, kind)
            heads = range(model.n_heads) if kind == "head" else [None]
            sites += [site._replace(head=head) for head in heads for site in members]
    return list(dict.fromkeys(sites))


def single_sites(model: Sized, kinds: Sequence[str]) -> list[Site]:
    """Each latent, and each layer × step of the other kinds, heads one by one."""
    latents = stepwise(model, "latent") if "latent" in kinds else []
    return [*latents, *expand(model, ["sitewise"], [kind for kind in dict.fromkeys(kinds) if kind != "latent"])]


def subsets(model: Sized, kind: str = "kv") -> list[Site]:
    """Every proper, non-empty subset of steps, all layers: the coalitions of a Shapley value."""
    steps = range(model.n_latents)
    chosen = [members for size in range(1, model.n_latents) for members in combinations(steps, size)]
    return [Site(kind, step_set=members) for members in chosen]


def windows(model: Sized, width: int, kind: str = "resid") -> list[Site]:
    """Windows of `width` adjacent layers at all steps."""
    if not 1 <= width <= model.n_layers:
        raise ValueError(f"a window of {width} layers does not exist; this model has {model.n_layers} layers")
    return [Site(kind, first, first + width - 1) for first in range(model.n_layers - width + 1)]
