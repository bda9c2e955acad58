"""A plan as tables and sentences, and as JSON. No torch."""

from __future__ import annotations

from typing import Any

from codi_tracing.analysis.statistics.inference import share_intervals
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS
from codi_tracing.patching.engine.partition import GIB
from codi_tracing.patching.plan.cost import FAILED_REQUEST, INLINE, REQUEST_LIMIT, Cost
from codi_tracing.patching.plan.count import Plan

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(count: float, unit: str) -> str:
    """Three digits with a decimal prefix: `1.23 TFLOP`, `256 MB`."""
    for power, prefix in PREFIXES:
        if count >= power:
            return f"{count / power:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def sweep_rows(plan: Plan) -> list[list[str]]:
    """A header, and one row for each sweep."""
    header = ["sweep", "pairs", "cells a pair", "batches", "pairs at once", "cells at once", "forwards", "rows"]
    rows = [
        (s.name, s.pairs, s.cells_per_pair, s.batches, s.sizes.pairs_per_batch, s.sizes.cells_per_forward,
         s.cost.forwards, s.rows)
        for s in plan.sweeps
    ]  # fmt: skip
    return [header, *(list(map(str, row)) for row in rows)]


def total_rows(plan: Plan, tflops: float | None) -> list[list[str]]:
    """FLOPs by phase, memory, rows, NDIF's jobs and bytes, and seconds at a given rate."""
    size, cost = plan.inputs.size, plan.cost
    least = cost.flops - cost.decoding_flops
    base = f"{size.base_parameters:,} parameters in the base, {size.dtype}"
    fits = cost.largest_sent <= REQUEST_LIMIT
    request = "up to 256 MiB are sent" if fits else "not sent, unless compression brings it below 256 MiB"
    inline = cost.largest_returned <= INLINE
    result = "up to 8 MiB travel inline" if inline else "above 8 MiB, through an object store"
    decoded = f"{short(cost.decoding_flops, 'FLOP')} at most, in {cost.decoding_forwards:,} more forwards"
    sent = f"{short(cost.largest_sent, 'B')} at most, {short(cost.bytes_sent, 'B')} in all"
    returned = f"{short(cost.largest_returned, 'B')} at most, {short(cost.bytes_returned, 'B')} in all"
    rows = [
        ["FLOPs", f"{short(cost.flops, 'FLOP')} at most, {short(least, 'FLOP')} without decoding"],
        ["· questions", short(cost.question_flops, "FLOP")],
        ["· latent steps", short(cost.thought_flops, "FLOP")],
        ["· answers, forced", short(cost.answer_flops, "FLOP")],
        ["· answers, decoded", decoded],
        ["weights", f"{plan.weight_bytes / GIB:.3g} GiB ({base})"],
        ["beside them", f"{plan.peak_gib:g} GiB by an estimate, {plan.config.memory:g} allowed (memory)"],
        ["rows of the table", f"{sum(sweep.rows for sweep in plan.sweeps):,}"],
        ["95 % intervals", expected_precision(max(sweep.pairs for sweep in plan.sweeps))],
        ["jobs on NDIF", f"{cost.jobs:,}"],
        ["· sent a job", f"{sent}; {request}"],
        ["· returned a job", f"{returned}; {result}"],
    ]
    if tflops is not None:
        times = f"{seconds(least, tflops):,.3g} to {seconds(cost.flops, tflops):,.3g}"
        rows.append(["seconds", f"{times} = FLOPs / the {tflops:g} TFLOP/s given"])
    return rows


def expected_precision(pairs: int) -> str:
    """The half-width to expect of a share or transfer, at most, where every pair is a cluster of its own."""
    if pairs < FEWEST_CLUSTERS:
        return f"none: {pairs} pairs are fewer than the {FEWEST_CLUSTERS} clusters that an interval needs"
    low, high = share_intervals(0.5, pairs)
    return f"± {float(high - low) / 2:.2f} for a transfer or share of 0.5, if no two pairs are of one cluster"


def seconds(flops: int, tflops: float) -> float:
    """The time that so many FLOPs take at a rate in TFLOP/s."""
    return flops / (tflops * 1e12)


def assumption_sentences(plan: Plan) -> list[str]:
    """Everything that was assumed or left out, one sentence each."""
    config, size = plan.config, plan.inputs.size
    apart = not config.merge_lora or config.remote is not None
    lora = "LoRA is apart" if apart else "LoRA is merged, unless that changes too much"
    sentences = [
        *plan.assumptions,
        f"a FLOP is an addition or a multiplication of a matrix product, padding and masks included; {lora}",
        "FLOPs and bytes are within 10 %, where nothing was assumed",
        "loading, the checks before the sweep, means, filters, norms, softmax and metrics are not counted",
    ]
    if plan.shard[1] > 1:
        sentences.append(f"batches are those of shard {plan.shard[0]} of {plan.shard[1]}, pairs the whole run's")
    if config.reinitialised:
        sentences.append("the model before training is loaded beside the model, with LoRA apart")
    job = "a batch of pairs is one job"
    if config.remote and config.remote.cells_per_job is not None:
        job = f"a job has at most {config.remote.cells_per_job} cells, or one forward, and reads the questions anew"
    projection = short(size.projection_parameters * size.number_bytes, "B")
    return [
        *sentences,
        f"on NDIF {job}; it holds the projection ({projection}), BoT and EoT, tokens, pairs, cells, means where they "
        "are written, and this package's source; the server holds base and LoRA, and makes masks and noise",
        "bytes are those before compression; measured on ndif 0.1.2 over loopback, requests of 256 MB worked and of "
        f"{short(FAILED_REQUEST, 'B')} failed, and results up to 8 MiB travel inline",
    ]


def cost_record(cost: Cost) -> dict[str, int]:
    return {**cost._asdict(), "flops": cost.flops}


def as_record(plan: Plan, tflops: float | None) -> dict[str, Any]:
    """The whole plan as JSON: bytes, FLOPs, GiB, seconds."""
    return {
        "name": plan.config.name,
        "experiment": plan.config.experiment,
        "shard": f"{plan.shard[0]}/{plan.shard[1]}",
        "model": {"size_source": plan.inputs.size_source, **plan.inputs.size._asdict()},
        "sweeps": [
            {**sweep._asdict(), "sizes": sweep.sizes._asdict(), "cost": cost_record(sweep.cost)}
            for sweep in plan.sweeps
        ],
        "cost": cost_record(plan.cost),
        "weight_bytes": plan.weight_bytes,
        "estimated_gib": plan.peak_gib,
        "seconds_at_most": None if tflops is None else seconds(plan.cost.flops, tflops),
        "assumptions": assumption_sentences(plan),
    }
