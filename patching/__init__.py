"""Pairs, sites and sources to the table: the sweep and what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patching.attribution import attribute as attribute
    from patching.edges import Edge as Edge
    from patching.edges import edge as edge
    from patching.engine import sweep as sweep
    from patching.lens import lens_tables as lens_tables
    from patching.metrics import kl_from_corrupted as kl_from_corrupted
    from patching.metrics import kl_to_clean as kl_to_clean
    from patching.metrics import logit_difference as logit_difference
    from patching.metrics import prediction_change as prediction_change
    from patching.metrics import rms_logit_difference as rms_logit_difference
    from patching.pairs import load_pairs as load_pairs
    from patching.sites import BOT as BOT
    from patching.sites import QUESTION as QUESTION
    from patching.sites import THOUGHT as THOUGHT
    from patching.sites import Site as Site
    from patching.sites import headwise as headwise
    from patching.sites import layerwise as layerwise
    from patching.sites import prefixes as prefixes
    from patching.sites import sitewise as sitewise
    from patching.sites import stepwise as stepwise
    from patching.sites import subsets as subsets
    from patching.sites import suffixes as suffixes
    from patching.sites import windows as windows
    from patching.sources import Value as Value
    from patching.sources import itself as itself
    from patching.sources import mean as mean
    from patching.sources import moments as moments
    from patching.sources import noise as noise
    from patching.sources import other as other
    from patching.sources import steer as steer
    from patching.sources import step_mean as step_mean
    from patching.sources import unrelated as unrelated
    from patching.sources import zero as zero
    from patching.worked import of_pairs as of_pairs
    from patching.worked import of_problems as of_problems

_NAMES = {
    "attribution": ("attribute",),
    "edges": ("Edge", "edge"),
    "engine": ("sweep",),
    "lens": ("lens_tables",),
    "metrics": ("kl_from_corrupted", "kl_to_clean", "logit_difference", "prediction_change", "rms_logit_difference"),
    "pairs": ("load_pairs",),
    "sites": (
        "BOT",
        "QUESTION",
        "THOUGHT",
        "Site",
        "headwise",
        "layerwise",
        "prefixes",
        "sitewise",
        "stepwise",
        "subsets",
        "suffixes",
        "windows",
    ),
    "sources": ("Value", "itself", "mean", "moments", "noise", "other", "steer", "step_mean", "unrelated", "zero"),
    "worked": ("of_pairs", "of_problems"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "BOT",
    "QUESTION",
    "THOUGHT",
    "Edge",
    "Site",
    "Value",
    "attribute",
    "edge",
    "headwise",
    "itself",
    "kl_from_corrupted",
    "kl_to_clean",
    "layerwise",
    "lens_tables",
    "load_pairs",
    "logit_difference",
    "mean",
    "moments",
    "noise",
    "of_pairs",
    "of_problems",
    "other",
    "prediction_change",
    "prefixes",
    "rms_logit_difference",
    "sitewise",
    "steer",
    "step_mean",
    "stepwise",
    "subsets",
    "suffixes",
    "sweep",
    "unrelated",
    "windows",
    "zero",
]


def __getattr__(name: str):
    """Import torch and nnsight only when something that needs them is asked for."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'patching' has no attribute {name!r}")
    return getattr(import_module(f"patching.{_HOME[name]}"), name)
