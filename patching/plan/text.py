"""A plan of a run in words, and as JSON. No torch."""

from __future__ import annotations

from typing import Any

from codi_tracing.patching.engine.partition import GIB
from codi_tracing.patching.plan.cost import FAILED, INLINE, LARGEST
from codi_tracing.patching.plan.count import Plan, Planned

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(count: float, unit: str) -> str:
    """A number in three digits, in powers of ten: `1.23 TFLOP`, `256 MB`."""
    for power, letter in UNITS:
        if count >= power:
            return f"{count / power:.3g} {letter}{unit}"
    return f"{count:.0f} {unit}"


def flop(count: float) -> str:
    return short(count, "FLOP")


def size(count: float) -> str:
    return short(count, "B")


def sweep_rows(plan: Plan) -> list[list[str]]:
    """The sweeps, a row each under their heads."""
    heads = ["sweep", "pairs", "cells a pair", "batches", "pairs at once", "cells at once", "forwards", "rows"]
    return [heads, *map(sweep_row, plan.sweeps)]


def sweep_row(sweep: Planned) -> list[str]:
    sizes = sweep.sizes
    at_once = sizes.pairs_per_batch, sizes.cells_per_forward
    numbers = sweep.pairs, sweep.cells_per_pair, sweep.batches, *at_once, sweep.forwards, sweep.rows
    return [sweep.name, *map(str, numbers)]


def product_rows(plan: Plan) -> list[list[str]]:
    """Matrix products by phase, all sweeps together."""
    found, decoding = plan.products, sum(sweep.decoding_forwards for sweep in plan.sweeps)
    return [
        ["matrix products", f"{flop(found.total)} at most, {flop(found.total - found.decoding)} without decoding"],
        ["· questions", flop(found.question)],
        ["· latent steps", flop(found.thought)],
        ["· answers, forced", flop(found.answer)],
        ["· answers, decoded", f"{flop(found.decoding)} at most, in {decoding:,} more forwards"],
        ["· of the first three, attention", flop(found.attention)],
    ]


def memory_rows(plan: Plan) -> list[list[str]]:
    """Bytes of weights, of a forward and of the table."""
    model, allowed = plan.known.model, plan.config.memory
    weights, base = plan.weight_bytes / GIB, f"{model.base_numbers:,} parameters in the base"
    return [
        ["weights", f"{weights:.3g} GiB ({base}, {model.dtype})"],
        ["beside them", f"{plan.peak_gib:g} GiB by an estimate, {allowed:g} allowed (memory)"],
        ["rows of the table", f"{sum(sweep.rows for sweep in plan.sweeps):,}"],
    ]


def remote_rows(plan: Plan) -> list[list[str]]:
    """What NDIF would be sent and would send back."""
    sweeps = plan.sweeps
    request, result = max(s.sent.largest for s in sweeps), max(s.returned.largest for s in sweeps)
    sent, returned = sum(s.sent.all for s in sweeps), sum(s.returned.all for s in sweeps)
    return [
        ["jobs on NDIF", f"{sum(s.jobs for s in sweeps):,}"],
        ["· sent a job", f"{size(request)} at most, {size(sent)} in all; {judged_request(request)}"],
        ["· returned a job", f"{size(result)} at most, {size(returned)} in all; {judged_result(result)}"],
    ]


def judged_request(count: int) -> str:
    """A request beside the largest that is known to arrive; a larger one is not sent."""
    return "up to 256 MiB are sent" if count <= LARGEST else "not sent, unless compression brings it below 256 MiB"


def judged_result(count: int) -> str:
    """A result beside the size up to which it comes with the answer itself."""
    return "up to 8 MiB travel inline" if count <= INLINE else "above 8 MiB, by way of an object store"


def time_rows(plan: Plan, tflops: float | None) -> list[list[str]]:
    """Seconds at a rate that is given, and none otherwise."""
    if tflops is None:
        return []
    found = plan.products
    least, most = (seconds(count, tflops) for count in (found.total - found.decoding, found.total))
    return [["seconds", f"{least:,.3g} to {most:,.3g} = matrix products / the {tflops:g} TFLOP/s given"]]


def seconds(count: int, tflops: float) -> float:
    """How long so many operations take at a rate."""
    return count / (tflops * 1e12)


def assumptions(plan: Plan) -> list[str]:
    """Everything that was assumed, a sentence each."""
    config, model = plan.config, plan.known.model
    apart = not config.merge_lora or config.remote is not None
    whose = "LoRA is apart" if apart else "LoRA is merged, unless that changes too much"
    said = [
        *plan.said,
        f"a FLOP is an addition or a multiplication of a matrix product, those of padding and masks too; {whose}",
        "loading, the checks before the sweep, means, what a filter asks, norms, softmax and metrics are not counted",
    ]
    if plan.shard[1] > 1:
        said.append(f"of shard {plan.shard[0]} of {plan.shard[1]} its batches are counted; pairs are the whole run's")
    if config.reinitialised:
        said.append("the model before training is loaded beside the model, with LoRA apart")
    jobs, most = "a batch of pairs is one job", config.remote.cells_per_job if config.remote else None
    if most is not None:
        jobs = f"a job has as many forwards of cells as make {most} cells, or one, and reads the questions anew"
    held = size(model.project_numbers * model.bytes_each)
    return [
        *said,
        f"on NDIF {jobs}; it holds the projection ({held}), BoT and EoT, tokens, pairs, cells, means where they are "
        "written, and this package's source; base, LoRA, masks and noise are the server's",
        "bytes are those before compression; measured on ndif 0.1.2 over loopback, requests of 256 MB worked and of "
        f"{size(FAILED)} failed, and results up to 8 MiB travel inline",
    ]


def as_record(plan: Plan, tflops: float | None) -> dict[str, Any]:
    """The whole plan as JSON: bytes, floating-point operations, GiB, seconds."""

    def total(products: Any) -> dict[str, int]:
        return {**products._asdict(), "total": products.total}

    sweeps = [
        {
            **sweep._asdict(),
            "sizes": sweep.sizes._asdict(),
            "products": total(sweep.products),
            "sent": sweep.sent._asdict(),
            "returned": sweep.returned._asdict(),
        }
        for sweep in plan.sweeps
    ]
    return {
        "name": plan.config.name,
        "experiment": plan.config.experiment,
        "shard": f"{plan.shard[0]}/{plan.shard[1]}",
        "model": {"sizes_of": plan.known.named, **plan.known.model._asdict()},
        "sweeps": sweeps,
        "products": total(plan.products),
        "weight_bytes": plan.weight_bytes,
        "estimated_gib": plan.peak_gib,
        "seconds_at_most": None if tflops is None else seconds(plan.products.total, tflops),
        "assumptions": assumptions(plan),
    }
