"""Every name that configs, table columns, code and reports share, each once, with its words. Standard library only.

A name is the key of one dictionary; its entry has the words for titles, axes, sentences and `configs/README.md`.

>>> SITE_KINDS["resid"].noun, DIRECTIONS["denoising"].host
('residual stream', 'corrupted')
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class SiteKind(NamedTuple):
    """One coordinate of a site, beside its layer, step and head."""

    noun: str  # in titles and axes
    part: Literal["input", "block", "cache", "segment"]  # of the model; a segment has no layer, step or head
    meaning: str


SITE_KINDS = {
    "latent": SiteKind("fed latent", "input", "the embedding fed at a step"),
    "resid": SiteKind("residual stream", "block", "a block's output at a step"),
    "attn": SiteKind("attention output", "block", "what a block's attention adds to the residual stream at a step"),
    "mlp": SiteKind("MLP output", "block", "what a block's MLP adds to the residual stream at a step"),
    "head": SiteKind("one head's output", "block", "one head's slice of the input of attention's output projection"),
    "kv": SiteKind("cache entry", "cache", "a step's cache entry at a layer, as later positions read it"),
    "thought": SiteKind("whole thought", "segment", "the cache of all steps and layers, as the answer reads it"),
    "question": SiteKind("question's cache", "segment", "the question's cache, as later positions read it"),
    "bot": SiteKind("BoT's cache", "segment", "BoT's cache, as later positions read it"),
}
BLOCK_KINDS = tuple(name for name, kind in SITE_KINDS.items() if kind.part == "block")  # written while a block runs
SEGMENTS = tuple(name for name, kind in SITE_KINDS.items() if kind.part == "segment")  # segments of the cache
GRID_KINDS = tuple(name for name in SITE_KINDS if name not in SEGMENTS)  # those that a config can name

GRIDS = {
    "layerwise": "one layer at all steps, the original experiment's grid",
    "stepwise": "one step, all layers",
    "sitewise": "one layer at one step",
    "prefixes": "steps 0 to k, all layers",
    "suffixes": "steps k to the last, all layers",
}


class DirectionEntry(NamedTuple):
    """The run that is written into (host), and the pair's other run (partner)."""

    host: str
    partner: str
    phrase: str


DIRECTIONS = {
    "denoising": DirectionEntry("corrupted", "clean", "clean values into the corrupted run"),
    "noising": DirectionEntry("clean", "corrupted", "corrupted values into the clean run"),
}


class SourceEntry(NamedTuple):
    """Where the written values come from: a run, or a value that is computed."""

    words: str
    computed: bool = False
    default: bool = False  # in a config that names no sources
    used_in: Literal["config", "table", "both"] = "both"


SOURCES = {
    "other": SourceEntry("the pair's other run", default=True, used_in="config"),  # in the table: clean or corrupted
    "clean": SourceEntry("the pair's clean run", used_in="table"),
    "corrupted": SourceEntry("the pair's corrupted run", used_in="table"),
    "unrelated": SourceEntry("the run of an unrelated question of equal token count", default=True),
    "self": SourceEntry("the host run itself", used_in="table"),
    "zero": SourceEntry("zeros", computed=True),
    "mean": SourceEntry("the mean over pairs and steps", computed=True),
    "step_mean": SourceEntry("the mean over pairs at that step", computed=True),
    "noise": SourceEntry("noise with the norm of what the pair's other run would write", computed=True, default=True),
    "moments": SourceEntry(
        "noise with the mean and variance, over the width, of what the pair's other run would write", computed=True
    ),
}
CONFIG_SOURCES = tuple(name for name, source in SOURCES.items() if source.used_in != "table")
TABLE_SOURCES = tuple(name for name, source in SOURCES.items() if source.used_in != "config")
DEFAULT_SOURCES = tuple(name for name, source in SOURCES.items() if source.default)

ROUTES = {  # by which an edit leaves its step
    "R": "the projection to the next latent",
    "K_T": "the step's cache entries as later steps read them",
    "K_A": "the step's cache entries as EoT, prefix and answer read them",
}
FREEZABLE = ROUTES | {"between": "all other steps, so that each later position reads the edit directly"}


class MetricEntry(NamedTuple):
    """A number measured in every patched run; its references are the same number in the pair's two unpatched runs."""

    label: str  # in titles and axes
    read_at: Literal["answer position", "EoT", "decoded answer", "whole answer", "edit", "latent step", "gradient"]
    definition: str
    default: bool = False  # in a config that names no metrics
    in_config: bool = True  # whether a config can name it


METRICS = {
    # Two bars, since the fonts of the images lack the sign for parallel.
    "kl_from_corrupted": MetricEntry("KL(patched || corrupted)", "answer position", "KL(patched || corrupted) in nats: "
        "the disturbance of the corrupted run, not a recovery; the original experiment's metric", default=True),
    "kl_to_clean": MetricEntry("KL(clean || patched)", "answer position", "KL(clean || patched) in nats: 0 where the "
        "clean run's distribution is restored", default=True),
    "logit_difference": MetricEntry("logit difference", "answer position", "logit of the clean answer's token − logit "
        "of the corrupted answer's token, at the first token where the two answers differ", default=True),
    "rms_logit_difference": MetricEntry("rms logit difference", "answer position", "root mean square over the "
        "vocabulary of the logits' difference to the corrupted run", default=True),
    "prediction_change": MetricEntry("prediction change", "answer position", "1 where the likeliest token differs from "
        "the host run's, else 0", default=True),
    "answer": MetricEntry("answer", "decoded answer", "the last number of the greedily decoded answer, as upstream "
        "reads it; NaN without a number", default=True),
    "answer_is_clean": MetricEntry("answer is clean", "decoded answer", "1 where that number is the clean question's "
        "key, else 0", default=True),
    "answer_is_corrupted": MetricEntry("answer is corrupted", "decoded answer", "1 where that number is the corrupted "
        "question's key, else 0; an answer that is neither is “other”", default=True),
    "gives_clean": MetricEntry("gives the clean run's answer", "decoded answer", "1 where that number is what the "
        "unpatched clean run decodes, right or wrong, else 0; NaN where that run decodes none", default=True),
    "gives_corrupted": MetricEntry("gives the corrupted run's answer", "decoded answer", "1 where that number is what "
        "the unpatched corrupted run decodes, else 0; NaN where that run decodes none", default=True),
    "answer_is_hybrid": MetricEntry("answer is hybrid", "decoded answer", "1 where that number is the result of the "
        "host's remaining operations on the donor's intermediate, else 0", in_config=False),
    "js_to_clean": MetricEntry("js to clean", "answer position", "Jensen–Shannon divergence to the clean run in nats, "
        "from 0 to log 2 (Lin 1991)"),
    "entropy": MetricEntry("entropy", "answer position", "entropy of the next token in nats"),
    "top_overlap": MetricEntry("top overlap", "answer position", "share of the clean run's ten likeliest tokens that "
        "are among the patched run's ten"),
    "probability_clean": MetricEntry("probability of the clean answer", "whole answer", "probability of the whole "
        "clean answer with end of sequence, forced; transfer is the effect on the partner's", default=True),
    "probability_corrupted": MetricEntry("probability of the corrupted answer", "whole answer", "probability of the "
        "whole corrupted answer with end of sequence, forced", default=True),
    "logprob_clean": MetricEntry("logprob clean", "whole answer", "log probability in nats of the whole clean answer "
        "with end of sequence, forced"),
    "logprob_corrupted": MetricEntry("logprob corrupted", "whole answer", "log probability in nats of the whole "
        "corrupted answer with end of sequence, forced"),
    "max_logit_change": MetricEntry("max logit change", "answer position", "largest absolute change of a logit against "
        "the host run", in_config=False),
    "edit_norm": MetricEntry("edit norm", "edit", "Euclidean norm of written minus replaced values, over the site"),
    "edit_cosine": MetricEntry("edit cosine", "edit", "cosine of written and replaced values, over the site"),
    "projection": MetricEntry("projection", "latent step", "how far a later step's state lies from the corrupted run's "
        "towards the clean run's, in units of the state; in the clean run, the distance of the two", in_config=False),
    "distance_to_clean": MetricEntry("distance to clean", "latent step", "Euclidean distance of a later step's state "
        "to the clean run's: 0 where it is restored", in_config=False),
    "logit_difference_estimate": MetricEntry("logit difference estimate", "gradient", "the effect on logit_difference "
        "as a gradient estimates it, without a patched run", in_config=False),
}  # fmt: skip
AT_EOT = "the same at EoT, which predicts the answer's first word and never its number; the original experiment read it"
METRICS |= {
    f"{name}_at_eot": MetricEntry(f"{METRICS[name].label} at EoT", "EoT", AT_EOT)
    for name in ("kl_from_corrupted", "kl_to_clean", "logit_difference", "rms_logit_difference", "prediction_change")
}
CONFIG_METRICS = tuple(name for name, metric in METRICS.items() if metric.in_config)
DEFAULT_METRICS = tuple(name for name, metric in METRICS.items() if metric.default)

FEWEST_CLUSTERS = 8  # below them there are estimates, and no intervals, p-values or ranks
PROTOCOLS = {
    "latent_loop": "the latent loop that the model was trained with",
    "single_pass": "the original experiment's single pass, in which pad tokens stand in place of the thought",
}
REINITIALISED = "latent_loop_reinitialised"  # in the table: the loop with LoRA and projection as before training


class ExperimentEntry(NamedTuple):
    """A value of the config key `experiment`, or a shipped sweep."""

    section: str  # of its figure in the report
    question: str
    procedure: str  # a sentence of the report's methods


SWEEP = "Each patched run writes one site (a layer, a step, or both), or the whole thought."
EXPERIMENTS = {
    "sweep": ExperimentEntry("Pair by pair, at the site of the largest pooled effect",
        "How far does writing one site move the answer?", SWEEP),
    "early_stop": ExperimentEntry("Stopping early", "How many of its steps does the answer need?",
        "The thought was stopped after each number of steps, and the answer decoded; or the steps from k on were taken "
        "from unrelated runs; with and without the answer attending to the question."),
    "influence": ExperimentEntry("Which step moves which", "Which step moves which later step, in total and directly?",
        "Each step's values were exchanged, and every later step and the answer measured."),
    "iterative": ExperimentEntry("Steps written one after the other",
        "If steps 0 to k are patched, does the model generate a clean step k+1 by itself?",
        "Steps were exchanged cumulatively, from the first step on, and every following step measured."),
    "matched": ExperimentEntry("Matched donors: intermediate against answer",
        "Does a thought carry intermediates that later steps compute with, or only the answer?",
        "Pairs were matched by whether an intermediate of their chains, and their answers, are the same; steps of the "
        "donor's thought were written into the host, one at a time and cumulatively."),
    "original": ExperimentEntry("The single pass beside the loop",
        "Which of the original experiment's numbers come from its single pass, and which from reading at EoT?",
        "The latent loop was compared with the original experiment's procedure, in which pad tokens stand in place of "
        "the thought."),
    "attribution": ExperimentEntry("Estimated and exact",
        "Which sites have large effects by a gradient's estimate, and are they large?",
        "The effects of all sites were estimated from gradients, the largest and random ones then patched."),
    "shapley": ExperimentEntry("What each step contributes",
        "What does each step's cache contribute, and which steps need each other?",
        "Every subset of the latent steps was exchanged, so that each step's Shapley value is exact."),
}  # fmt: skip
SWEEPS = {  # the shipped configs whose experiment is `sweep`
    "layerwise": ExperimentEntry("How far one layer moves the answer", "Which layer, at all steps?", SWEEP),
    "stepwise": ExperimentEntry("Step by step", "Which step, beside prefixes, suffixes and frozen routes?", SWEEP),
    "sitewise": ExperimentEntry("Layer by step", "Which layer at which step?", SWEEP),
    "ablation": ExperimentEntry("Replaced by zero, means and noise", "Which steps and layers are needed?", SWEEP),
    "knockout": ExperimentEntry("Attention knockouts", "What does the answer need to attend to?", SWEEP),
}
