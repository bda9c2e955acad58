"""Where a session runs: here, here after a serialisation dry run, or on a deployment of NDIF. One code path for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import nnsight
import torch

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model.codi_model import CodiModel

OURS = ("codi_tracing",)  # sent by value: where a session runs, it is not installed
LOCAL = "local"


class Started(Protocol):
    """A session that was begun, here or elsewhere."""

    @property
    def state(self) -> str:
        """Where it stands, in a word."""

    def ready(self) -> bool:
        """Whether its result is there; waits a moment for it."""

    def result(self) -> Any:
        """What its body returned; waits until that is there."""


class Done(NamedTuple):
    """A session that ran here."""

    value: Any
    state: str = "COMPLETED"

    def ready(self) -> bool:
        return True

    def result(self) -> Any:
        return self.value


def start(
    model: CodiModel, body: Callable[[], Any], *, gradients: bool = False, remote: bool | str | None = None
) -> Started:
    """Call `body` inside a session of the model's; what it returns (tensors, numbers, texts) comes back.

    `remote` says where: False here; `"local"` here too, after the session was serialised as it would be sent; True or
    an address on a deployment of NDIF; left out, where the model was loaded.
    """
    place = place_of(model, remote)
    if place is not None:
        for package in OURS:
            nnsight.register(package)
        if place.host != LOCAL:
            from codi_tracing.traces.remote.ndif import Job, LaterJob

            if gradients:
                raise ValueError("a deployment's sandbox computes no gradients; load the model here for them")
            return LaterJob(model, body, place) if model.ledger and model.ledger.batch else Job(model, body, place)
    with torch.set_grad_enabled(gradients), model.lm.session(remote=False if place is None else LOCAL):
        value = nnsight.save(body())
    return Done(value)


def place_of(model: CodiModel, remote: bool | str | None) -> Remote | None:
    """The deployment that is meant; None for this machine."""
    if remote is None:
        return model.deployment
    if isinstance(remote, str):
        return Remote(host=remote)
    return (model.deployment or Remote()) if remote else None
