"""Run a session here, here after a trial serialisation, or on an NDIF deployment, through one code path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import nnsight
import torch

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import as_remote
from codi_tracing.traces.remote.jobs import NdifJob, SubmittedJob

PACKAGE = "codi_tracing"  # a deployment does not have it: its functions and classes travel by value
LOCAL = "local"


class LocalResult(NamedTuple):
    """The result of a session that ran here."""

    value: Any
    state: str = "COMPLETED"

    def ready(self) -> bool:
        return True

    def result(self) -> Any:
        return self.value


PendingResult = LocalResult | NdifJob | SubmittedJob


def start(
    model: CodiModel, body: Callable[[], Any], *, gradients: bool = False, remote: bool | str | None = None
) -> PendingResult:
    """Call `body` inside a session of the model; the tensors, numbers and texts that it returns are the result.

    `remote`: False runs here; `"local"` runs here after serialising the session as for a deployment; True or an address
    runs on an NDIF deployment; None runs where the model was loaded.
    """
    deployment = deployment_of(model, remote)
    if deployment is not None:
        nnsight.register(PACKAGE)
        if deployment.host != LOCAL:
            if gradients:
                raise ValueError("a deployment's sandbox computes no gradients; load the model here for them")
            submits = model.ledger is not None and model.ledger.batch
            return (SubmittedJob if submits else NdifJob)(model, partial(in_evaluation_mode, model, body), deployment)
    with torch.set_grad_enabled(gradients), model.lm.session(remote=False if deployment is None else LOCAL):
        value = nnsight.save(in_evaluation_mode(model, body))
    return LocalResult(value)


def in_evaluation_mode(model: CodiModel, body: Callable[[], Any]) -> Any:
    """Call `body` with every module in evaluation mode: whoever attaches an adapter may leave its dropout live."""
    model.lm._module.eval()
    return body()


def deployment_of(model: CodiModel, remote: bool | str | None) -> Remote | None:
    """The deployment that the argument `remote` names for a model; None for this machine."""
    if remote is None:
        return model.deployment
    return model.deployment if remote is True and model.deployment else as_remote(remote)
