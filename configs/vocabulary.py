"""The names that configs, table columns and code share."""

from __future__ import annotations

from typing import Literal

Direction = Literal["denoising", "noising"]
Metric = Literal[
    "kl_from_corrupted",
    "kl_to_clean",
    "logit_difference",
    "rms_logit_difference",
    "prediction_change",
    "answer",
    "answer_is_clean",
    "answer_is_corrupted",
    "js_to_clean",
    "entropy",
    "top_overlap",
    "logprob_clean",
    "logprob_corrupted",
    "kl_from_corrupted_at_eot",
    "kl_to_clean_at_eot",
    "logit_difference_at_eot",
    "rms_logit_difference_at_eot",
    "prediction_change_at_eot",
    "edit_norm",
    "edit_cosine",
]
Experiment = Literal["sweep", "early_stop", "influence", "iterative", "matched", "original", "attribution", "shapley"]
Protocol = Literal["latent_loop", "single_pass"]
Grid = Literal["layerwise", "stepwise", "sitewise", "prefixes", "suffixes"]
Kind = Literal["latent", "resid", "attn", "mlp", "head", "kv"]
Source = Literal["other", "unrelated", "zero", "mean", "step_mean", "noise", "moments"]
Route = Literal["R", "K_T", "K_A"]
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
METRICS: tuple[Metric, ...] = Metric.__args__[:8]  # type: ignore[attr-defined]
ESTIMATED: tuple[Kind, ...] = ("latent", "resid", "attn", "mlp", "head", "kv")
ONE_KIND = ("influence", "iterative", "matched")
DEFAULT_SOURCES: tuple[Source, ...] = ("other", "unrelated", "noise")
# What a sweep may say of its grid, and which of it a ready-made experiment leaves open; the rest is its own.
OF_A_SWEEP = (
    "grid", "kinds", "sources", "freeze", "also_unfrozen", "metrics", "draws", "knockouts", "protocol", "beyond", "top", "matches",
    "extra_problems", "directions", "reinitialised",
)  # fmt: skip
OPEN: dict[str, tuple[str, ...]] = {
    "sweep": (
        "grid",
        "kinds",
        "sources",
        "freeze",
        "also_unfrozen",
        "metrics",
        "draws",
        "knockouts",
        "protocol",
        "directions",
        "reinitialised",
    ),
    "early_stop": ("draws", "beyond", "directions", "reinitialised"),
    "influence": ("kinds", "directions", "reinitialised"),
    "iterative": ("kinds", "directions", "reinitialised"),
    "matched": ("kinds", "matches", "extra_problems"),
    "original": ("reinitialised",),
    "attribution": ("kinds", "top", "directions", "reinitialised"),
    "shapley": ("directions", "reinitialised"),
}
