"""Every name that configs, table columns, code and reports share, each once, with its words.

A name is the key of one dictionary; its record holds what titles, axes, sentences and `configs/README.md` say of it.
Standard library only, so that every room can import it.

>>> SITE_KINDS["resid"].noun, DIRECTIONS["denoising"].host
('residual stream', 'corrupted')
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class SiteKind(NamedTuple):
    """A kind of intervention site: one coordinate of a site, beside its layer, step and head."""

    noun: str  # in titles and axes
    meaning: str
    part: Literal["input", "block", "cache", "segment"]  # of the model; a segment has no layer, step or head


SITE_KINDS = {
    "latent": SiteKind("fed latent", "the embedding fed at a step", "input"),
    "resid": SiteKind("residual stream", "a block's output at a step", "block"),
    "attn": SiteKind("attention output", "what a block's attention adds to the residual stream at a step", "block"),
    "mlp": SiteKind("MLP output", "what a block's MLP adds to the residual stream at a step", "block"),
    "head": SiteKind(
        "one head's output", "one head's slice of the input of the attention's output projection", "block"
    ),
    "kv": SiteKind(
        "cache entry", "a step's cache entry at a layer, replaced after the step: only later positions read it", "cache"
    ),
    "thought": SiteKind("whole thought", "the answer reads the donor's cache of all steps and layers", "segment"),
    "question": SiteKind("question's cache", "later positions read the donor's cache of the question", "segment"),
    "bot": SiteKind("BoT's cache", "later positions read the donor's cache of BoT", "segment"),
}
BLOCK_KINDS = tuple(name for name, kind in SITE_KINDS.items() if kind.part == "block")  # written while a block runs
SEGMENTS = tuple(name for name, kind in SITE_KINDS.items() if kind.part == "segment")  # segments of the cache
GRID_KINDS = tuple(name for name in SITE_KINDS if name not in SEGMENTS)  # those that a config's grid can have

GRIDS = {
    "layerwise": "one layer at all steps, the original experiment's grid",
    "stepwise": "one step, all layers",
    "sitewise": "one layer at one step",
    "prefixes": "steps 0 to k, all layers",
    "suffixes": "steps k to the last, all layers",
}


class Direction(NamedTuple):
    """A direction of patching: the run that is written into (host), and the pair's other run (partner)."""

    host: str
    partner: str
    phrase: str


DIRECTIONS = {
    "denoising": Direction("corrupted", "clean", "clean values into the corrupted run"),
    "noising": Direction("clean", "corrupted", "corrupted values into the clean run"),
}


class Source(NamedTuple):
    """Where the written values come from: a run, or a value that is computed."""

    words: str
    computed: bool = False
    default: bool = False  # in a config that names no sources
    used_in: Literal["config", "table", "both"] = "both"


SOURCES = {
    "other": Source("the pair's other run", default=True, used_in="config"),  # in the table: clean or corrupted
    "clean": Source("the pair's clean run", used_in="table"),
    "corrupted": Source("the pair's corrupted run", used_in="table"),
    "unrelated": Source("the run of an unrelated question of equal token count", default=True),
    "self": Source("the host run itself", used_in="table"),
    "zero": Source("zeros", computed=True),
    "mean": Source("the mean over pairs and steps", computed=True),
    "step_mean": Source("the mean over pairs at that step", computed=True),
    "noise": Source("noise with the norm of the other run's value", computed=True, default=True),
    "moments": Source("noise with the mean and variance of the other run's value", computed=True),
}
CONFIG_SOURCES = tuple(name for name, source in SOURCES.items() if source.used_in != "table")
TABLE_SOURCES = tuple(name for name, source in SOURCES.items() if source.used_in != "config")
DEFAULT_SOURCES = tuple(name for name, source in SOURCES.items() if source.default)

# The edges by which an edit leaves its step.
ROUTES = {
    "R": "the projection to the next latent",
    "K_T": "the step's cache entries as later steps read them",
    "K_A": "the step's cache entries as EoT, prefix and answer read them",
}
FREEZABLE = ROUTES | {"between": "all other steps, so that each later position reads the edit directly"}


class Metric(NamedTuple):
    """A number measured in every patched run; its references are the same number in the pair's two unpatched runs."""

    label: str  # in titles and axes
    read_at: Literal["answer position", "EoT", "decoded answer", "whole answer", "edit", "latent step", "gradient"]
    definition: str
    default: bool = False  # in a config that names no metrics
    in_config: bool = True  # whether a config can name it


METRICS = {
    # Two bars, since the fonts of the images lack the sign for parallel.
    "kl_from_corrupted": Metric(
        "KL(patched || corrupted)", "answer position", "KL(patched || corrupted) in nats: the disturbance of the "
        "corrupted run, no recovery; the original experiment's metric", default=True,
    ),
    "kl_to_clean": Metric(
        "KL(clean || patched)", "answer position", "KL(clean || patched) in nats: 0 where the clean run's distribution "
        "is restored", default=True,
    ),
    "logit_difference": Metric(
        "logit difference", "answer position", "logit of the clean answer's token − logit of the corrupted answer's "
        "token, at the first token where the two answers differ", default=True,
    ),
    "rms_logit_difference": Metric(
        "rms logit difference", "answer position", "root mean square over the vocabulary of the logits' difference to "
        "the corrupted run", default=True,
    ),
    "prediction_change": Metric(
        "prediction change", "answer position", "1 where the likeliest token differs from the host run's, else 0",
        default=True,
    ),
    "answer": Metric(
        "answer", "decoded answer", "the last number of the greedily decoded answer, as upstream reads it; NaN without "
        "a number", default=True,
    ),
    "answer_is_clean": Metric(
        "answer is clean", "decoded answer", "1 where that number is the clean question's key, else 0", default=True
    ),
    "answer_is_corrupted": Metric(
        "answer is corrupted", "decoded answer", "1 where that number is the corrupted question's key, else 0; an "
        "answer that is neither is “other”", default=True,
    ),
    "answer_is_hybrid": Metric(
        "answer is hybrid", "decoded answer", "1 where that number is the result of the host's remaining operations on "
        "the donor's intermediate, else 0", in_config=False,
    ),
    "js_to_clean": Metric(
        "js to clean", "answer position", "Jensen–Shannon divergence to the clean run in nats, from 0 to log 2 (Lin "
        "1991)",
    ),
    "entropy": Metric("entropy", "answer position", "entropy of the next token in nats"),
    "top_overlap": Metric(
        "top overlap", "answer position", "share of the clean run's ten likeliest tokens that are among the patched "
        "run's ten",
    ),
    "logprob_clean": Metric(
        "logprob clean", "whole answer", "log probability in nats of the whole clean answer with end of sequence, "
        "forced",
    ),
    "logprob_corrupted": Metric(
        "logprob corrupted", "whole answer", "log probability in nats of the whole corrupted answer with end of "
        "sequence, forced",
    ),
    "max_logit_change": Metric(
        "max logit change", "answer position", "largest absolute change of a logit against the host run",
        in_config=False,
    ),
    "edit_norm": Metric(
        "edit norm", "edit", "Euclidean norm of written minus replaced values, over the whole site"
    ),
    "edit_cosine": Metric("edit cosine", "edit", "cosine of written and replaced values, over the whole site"),
    "projection": Metric(
        "projection", "latent step", "distance of a later step's state from the corrupted run's along the direction to "
        "the clean run's, in units of the state; in the clean run, the distance of the two runs", in_config=False,
    ),
    "distance_to_clean": Metric(
        "distance to clean", "latent step", "Euclidean distance of a later step's state to the clean run's: 0 where it "
        "is restored", in_config=False,
    ),
    "logit_difference_estimate": Metric(
        "logit difference estimate", "gradient", "the effect on logit_difference as a gradient estimates it, without a "
        "patched run", in_config=False,
    ),
}  # fmt: skip
METRICS |= {
    f"{name}_at_eot": Metric(
        f"{METRICS[name].label} at EoT", "EoT", "the same at EoT, which predicts the answer's first word and never its "
        "number; the original experiment read there",
    )
    for name in ("kl_from_corrupted", "kl_to_clean", "logit_difference", "rms_logit_difference", "prediction_change")
}  # fmt: skip
CONFIG_METRICS = tuple(name for name, metric in METRICS.items() if metric.in_config)
DEFAULT_METRICS = tuple(name for name, metric in METRICS.items() if metric.default)

PROTOCOLS = {
    "latent_loop": "the latent loop that the model was trained with",
    "single_pass": "the original experiment's single pass, in which pad tokens stand in place of the thought",
}
REINITIALISED = "latent_loop_reinitialised"  # the loop with LoRA and projection as before training, in the table


class Experiment(NamedTuple):
    """An experiment, or a shipped sweep: what its report calls it, and what it asks."""

    section: str  # of its figure in the report
    question: str
    procedure: str  # one sentence of the report's methods


SWEEP = "Each patched run writes one site (a layer, a step, or both), or the whole thought."
EXPERIMENTS = {
    "sweep": Experiment(
        "Pair by pair, at the site of the largest pooled effect",
        "How far does writing one site move the answer?",
        SWEEP,
    ),
    "early_stop": Experiment(
        "Stopping early",
        "How many steps does the answer need? Stopped after k steps and beyond n; steps from k on resampled; with and "
        "without the answer attending to the question",
        "The thought was stopped after each number of steps, and the answer decoded.",
    ),
    "influence": Experiment(
        "Which step moves which",
        "Which step moves which later step, in total and directly?",
        "Each step's values were exchanged, and every later step and the answer measured.",
    ),
    "iterative": Experiment(
        "Steps written one after the other",
        "If steps 0 to k are patched, does the model generate a clean step k+1 by itself?",
        "Steps were exchanged cumulatively, from the first step on, and every following step measured.",
    ),
    "matched": Experiment(
        "Matched donors: intermediate against answer",
        "Does a thought carry intermediates that later steps compute with, or only the answer?",
        "Pairs were matched by whether an intermediate of their chains, and their answers, are the same; steps of the "
        "donor's thought were written into the host, one at a time and cumulatively.",
    ),
    "original": Experiment(
        "The single pass beside the loop",
        "Which of the original experiment's numbers come from its single pass, and which from reading at EoT?",
        "The latent loop was compared with the original experiment's procedure, in which pad tokens stand in place of "
        "the thought.",
    ),
    "attribution": Experiment(
        "Estimated and exact",
        "Which sites have large effects by a gradient's estimate, and are they large?",
        "The effects of all sites were estimated from gradients, the largest and random ones then patched.",
    ),
    "shapley": Experiment(
        "What each step contributes",
        "What does each step's cache contribute, and which steps need each other?",
        "Every subset of the latent steps was exchanged, so that each step's Shapley value is exact.",
    ),
}
# The shipped configs whose experiment is `sweep`.
SWEEPS = {
    "layerwise": Experiment("How far one layer moves the answer", "Which layer, at all steps?", SWEEP),
    "stepwise": Experiment("Step by step", "Which step, beside prefixes, suffixes and frozen routes?", SWEEP),
    "sitewise": Experiment("Layer by step", "Which layer at which step?", SWEEP),
    "ablation": Experiment("Replaced by zero, means and noise", "Which steps and layers does the answer need?", SWEEP),
    "knockout": Experiment("Attention knockouts", "What does the answer need to attend to?", SWEEP),
}
