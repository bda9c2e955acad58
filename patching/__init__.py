"""Pairs, sites and sources to the table: the sweep and what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patching.engine import sweep as sweep
    from patching.metrics import kl_from_corrupted as kl_from_corrupted
    from patching.metrics import kl_to_clean as kl_to_clean
    from patching.metrics import logit_difference as logit_difference
    from patching.metrics import prediction_change as prediction_change
    from patching.metrics import rms_logit_difference as rms_logit_difference
    from patching.pairs import load_pairs as load_pairs
    from patching.sites import THOUGHT as THOUGHT
    from patching.sites import Site as Site
    from patching.sites import layerwise as layerwise
    from patching.sites import sitewise as sitewise
    from patching.sites import stepwise as stepwise
    from patching.sources import itself as itself
    from patching.sources import other as other
    from patching.sources import unrelated as unrelated

_HOME = {
    **dict.fromkeys(
        ("kl_from_corrupted", "kl_to_clean", "logit_difference", "prediction_change", "rms_logit_difference"), "metrics"
    ),
    **dict.fromkeys(("THOUGHT", "Site", "layerwise", "sitewise", "stepwise"), "sites"),
    **dict.fromkeys(("itself", "other", "unrelated"), "sources"),
    "load_pairs": "pairs",
    "sweep": "engine",
}
__all__ = [
    "THOUGHT", "Site", "itself", "kl_from_corrupted", "kl_to_clean", "layerwise", "load_pairs", "logit_difference",
    "other", "prediction_change", "rms_logit_difference", "sitewise", "stepwise", "sweep", "unrelated",
]  # fmt: skip


def __getattr__(name: str):
    """Import torch and nnsight only when something that needs them is asked for."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'patching' has no attribute {name!r}")
    module = import_module(f"patching.{_HOME[name]}")
    return getattr(module, name)
