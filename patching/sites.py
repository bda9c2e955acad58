"""Where a run can be written: kinds of site, and the grids of sites that a sweep covers.

A site names a kind, layers and steps; `None` means all of them. Layers and steps are 0-based and read off the model.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Sized(Protocol):
    """What a grid needs to know of a model."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_latents(self) -> int: ...


class Site(NamedTuple):
    """One place of the thought: `resid` (block output at these layers and steps) or `thought` (the whole cache of it).

    `thought` is a cut: the answer phase reads the donor's cache for all steps and layers. `resid` at every layer and
    step is not the same, since layer 0's entry of step 0 comes from the latent that BoT produced.
    """

    kind: str
    layer: int | None = None
    layer_last: int | None = None
    step: int | None = None
    step_last: int | None = None

    def places(self, model: Sized) -> set[tuple[int, int]]:
        """Every (layer, step) that the site covers."""
        layers = _span(self.layer, self.layer_last, model.n_layers, "layer")
        steps = _span(self.step, self.step_last, model.n_latents, "step")
        return {(layer, step) for layer in layers for step in steps}


def _span(first: int | None, last: int | None, size: int, what: str) -> range:
    if first is None:
        return range(size)
    last = first if last is None else last
    if not 0 <= first <= last < size:
        raise ValueError(f"{what} {first}-{last} does not exist; this model has {what}s 0 to {size - 1}")
    return range(first, last + 1)


THOUGHT = Site("thought")


def resid(layer: int, step: int | None = None) -> Site:
    """The residual stream after one block, at one step or at all."""
    return Site("resid", layer, layer, step, step)


def layerwise(model: Sized) -> list[Site]:
    """The original experiment's grid: one layer at all steps."""
    return [resid(layer) for layer in range(model.n_layers)]


def stepwise(model: Sized) -> list[Site]:
    """One step, all layers."""
    return [Site("resid", None, None, step, step) for step in range(model.n_latents)]


def sitewise(model: Sized) -> list[Site]:
    """Layer × step: each single place."""
    return [resid(layer, step) for layer in range(model.n_layers) for step in range(model.n_latents)]


def prefixes(model: Sized) -> list[Site]:
    """All layers at steps 0 to k, for every k."""
    return [Site("resid", None, None, 0, step) for step in range(model.n_latents)]
