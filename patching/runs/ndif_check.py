"""Check before a sweep that a deployment of NDIF runs a checkpoint as this machine would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import nnsight
import torch
from nnsight.ndif import EnvComparison, get_local_env
from torch import Tensor

from codi_tracing.analysis.io.text import short_json
from codi_tracing.configs.schema import Remote
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sites import THOUGHT, resid
from codi_tracing.patching.interventions.sources import itself
from codi_tracing.patching.pairs.pair import Pair
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.runs.checks import Check
from codi_tracing.traces.loop.tokens import question_ids
from codi_tracing.traces.lora_merge import ALLOWED
from codi_tracing.traces.model.checkpoint import CheckpointError
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.remote.ndif import DeploymentError, address_of
from codi_tracing.traces.remote.responses import ask_json
from codi_tracing.traces.remote.session import start

LOADABLE = 8 * 2**30  # bytes; larger weights are not loaded here for comparison


def preflight(folder: Any, place: Remote, pairs: Sequence[Pair], dtype: str = "auto") -> Iterator[Check]:
    """Yield one check after the other; raises `DeploymentError` if the rest would be pointless.

    Host, versions, base, key and a job; that the adapter is applied (without it, the base's results would come back);
    that a self-patch changes nothing.
    """
    status = ask_json(place, "/status")
    host = address_of(place)
    yield Check("host", "invariant", True, None, f"{host} answers.")
    yield compared_versions(place)
    model = load_codi(folder, dtype=dtype, remote=place)
    yield served(model, status)
    ready, excluded = tokenize_pairs(model, pairs)
    if not ready:
        raise ValueError(f"none of the {len(pairs)} pairs is usable; the first reason is: {excluded[0][1]}")
    ids = torch.tensor([question_ids(model, ready[0].pair.clean.question)])
    there = start(model, partial(first_logits, model, ids)).result()
    if not isinstance(there, Tensor) or there.ndim != 2 or len(there) != len(ids):
        raise DeploymentError(f"{host}: returned something else than the logits that were asked for")
    yield Check("job", "invariant", True, None, "It takes the key, and ran a job.")
    yield from compared_weights(folder, model, ids, there)
    table = sweep_cells(model, ready[:2], make_cells([THOUGHT, resid(0)], [itself]), metrics=["max_logit_change"])
    change, largest = float(table["patched"].max()), float(there.abs().max())
    allowed = max(1e-5, 128 * torch.finfo(there.dtype).eps * largest)
    yield Check(
        "self_patch", "invariant", change <= allowed, change,
        f"A run patched with itself there changes no logit by more than {change:.1e} (allowed {allowed:.1e}).",
    )  # fmt: skip


def first_logits(model: CodiModel, ids: Tensor) -> Tensor:
    """The logits after some tokens, in the model's own precision. Call inside a session."""
    with model.lm.trace(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False):
        logits = nnsight.save(model.lm.lm_head.output[:, -1])
    return logits


def compared_versions(place: Remote) -> Check:
    """The versions that results depend on, there and here."""
    there = ask_json(place, "/env")
    try:
        mismatches = EnvComparison(get_local_env(), there).critical_mismatches
        other = ", ".join(
            f"{name} {short_json(one['remote'], 20)} (here {one['local']})" for name, one in mismatches.items()
        )
        sentence = (
            f"Other versions there: {other}." if other else "nnsight, torch and transformers are those that are here."
        )
    except (AttributeError, TypeError, IndexError):
        sentence = "The versions there cannot be read."
    return Check("versions", "finding", None, None, sentence)


def served(model: CodiModel, status: dict[str, Any]) -> Check:
    """Whether the base is loaded there, and in which precision."""
    key = model.lm.to_model_key()
    listed = status.get("deployments")
    deployments = [one for one in listed.values() if isinstance(one, dict)] if isinstance(listed, dict) else []
    matching = [one for one in deployments if one.get("model_key") == key]
    ours = str(model.dtype).removeprefix("torch.")
    if not matching:
        return Check("model", "finding", None, None, "The base is not loaded there; it is when it is first asked for.")
    dtype = str(matching[0].get("dtype") or "unknown").removeprefix("torch.")[:40]
    state = str(matching[0].get("application_state", "unknown"))[:40]
    other = "" if dtype in (ours, "unknown") else f" The checkpoint's own is {ours}: numbers differ by rounding."
    return Check("model", "finding", None, None, f"The base is {state} there, in {dtype}.{other}")


def compared_weights(folder: Any, model: CodiModel, ids: Tensor, there: Tensor) -> Iterator[Check]:
    """Compare logits with and without the adapter, and with those of the weights here."""
    bare = load_codi(folder, dtype=str(model.dtype).removeprefix("torch."), remote=model.deployment, adapted=False)
    change = float((start(bare, partial(first_logits, bare, ids)).result() - there).abs().max())
    allowed = ALLOWED[there.dtype] * float(there.abs().max())  # what rounding changes
    yield Check(
        "adapter", "invariant", change > 0, change,
        f"The adapter moves a logit there by up to {change:.3g}." if change > 0 else
        "With the adapter and without, the logits are the same there: it is not applied.",
    )  # fmt: skip
    size = sum(weight.numel() for weight in model.lm._module.parameters()) * there.dtype.itemsize
    if size > LOADABLE:
        sentence = f"Not compared with weights here: they are {size / 2**30:.0f} GiB."
        yield Check("weights", "finding", None, None, sentence)
        return
    try:
        local = load_codi(folder, "cpu", str(there.dtype).removeprefix("torch."))
    except CheckpointError as error:
        yield Check("weights", "finding", None, None, f"Not compared with weights here: {error}.")
        return
    here = start(local, partial(first_logits, local, ids)).result()
    change = float((here.float() - there.float()).abs().max())
    yield Check(
        "weights", "invariant", change <= allowed, change,
        f"Logits there and here differ by at most {change:.1e} (allowed {allowed:.1e}).",
    )  # fmt: skip
