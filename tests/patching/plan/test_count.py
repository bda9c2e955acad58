"""A plan has the cells, batches, sizes and rows that the run has."""

import json

import pytest

from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.patching.plan.count import plan_run
from codi_tracing.patching.plan.inputs import load_inputs
from codi_tracing.patching.runs.experiment import run_experiment
from codi_tracing.patching.runs.recipes import RECIPES
from tests.support.planning import config_of, first_batches, plan_of


def manifest_record(sweep) -> dict:
    """A planned sweep as a manifest records one."""
    return {
        "pairs": sweep.pairs,
        "cells_per_pair": sweep.cells_per_pair,
        "batches": sweep.of_batches,
        **{"pairs_per_batch": sweep.sizes.pairs_per_batch, "cells_per_forward": sweep.sizes.cells_per_forward},
        "estimated_gib": sweep.sizes.gib,
    }


@pytest.mark.parametrize(
    ("experiment", "others"),
    [
        ("sweep", {"reinitialised": True, "grid": ("stepwise", "prefixes"), "memory": 0.01}),
        ("attribution", {"kinds": ("resid", "latent", "kv"), "top": 3, "directions": ("noising",), "limit": 2}),
    ],
)
def test_a_plan_equals_what_the_manifest_of_the_run_records(experiment, others, tmp_path):
    config = config_of(experiment, **others)
    out = run_experiment(config, tmp_path / "run", progress=False)
    manifest, plan = json.loads((out / "manifest.json").read_text()), plan_of(config)
    assert [manifest_record(sweep) for sweep in plan.sweeps] == manifest["forwards"]
    assert sum(sweep.rows for sweep in plan.sweeps) == len(read_table(out / "cells.parquet"))


@pytest.mark.parametrize("experiment", sorted(set(RECIPES) - {"attribution", "matched"}))
def test_every_experiment_is_divided_into_the_planned_batches(experiment, shipped):
    config = config_of(experiment, limit=20, memory=0.05)
    assert [(s.pairs, s.cells_per_pair, s.of_batches, s.sizes) for s in plan_of(config).sweeps] == [
        (batch.pairs, batch.cells, batch.of, batch.sizes) for batch in first_batches(shipped, config)
    ]


def test_a_plan_counts_at_least_the_matched_donors_of_the_run(shipped):
    config = config_of("matched", extra_problems=60, matches=4, limit=4)
    of_corners, of_matched = first_batches(shipped, config)
    corners, matched = plan_of(config).sweeps
    assert corners.pairs == of_corners.pairs
    assert 0 < of_matched.pairs <= matched.pairs
    assert matched.cells_per_pair == of_matched.cells
    assert plan_of(config, pairs=5).sweeps[1].pairs == 3 * 4 * 4


def test_shards_add_up_to_the_run():
    config = config_of(limit=None, pairs_per_batch=7)
    inputs = load_inputs(config)
    whole, *shards = (plan_run(config, inputs, shard) for shard in (None, (1, 3), (2, 3), (3, 3)))
    for number in ("batches", "rows"):
        assert sum(getattr(shard.sweeps[0], number) for shard in shards) == getattr(whole.sweeps[0], number)
    for number in ("forwards", "jobs", "flops", "bytes_sent"):
        assert sum(getattr(shard.cost, number) for shard in shards) == getattr(whole.cost, number)


def test_fewer_cells_a_job_make_more_jobs_and_smaller_requests():
    options = {"grid": ("sitewise",), "cells_per_forward": 10}
    whole, divided = (plan_of(config_of(**options, remote={"cells_per_job": each})) for each in (None, 25))
    blocks = -(-whole.sweeps[0].cells_per_pair // 10)
    assert (whole.cost.jobs, divided.cost.jobs) == (1, -(-blocks // 2))
    assert divided.cost.largest_sent < whole.cost.largest_sent
    assert divided.cost.question_flops == divided.cost.jobs * whole.cost.question_flops
