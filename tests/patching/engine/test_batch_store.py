"""Batches are loaded if saved, else run and saved; each process runs only those of its shard."""

from contextlib import suppress

import pandas as pd
import pytest

from codi_tracing.patching.engine.batch_store import BatchResult, BatchSpec, MemoryStore, run_batches
from codi_tracing.patching.engine.partition import Sizes
from codi_tracing.traces.remote.submitted_jobs import JobsPending

SPECS = [BatchSpec(index, 5, 10, 3, Sizes(2, 3, None)) for index in range(5)]


class DictStore(MemoryStore):
    """Saves results by batch, and leaves out those whose jobs are not finished."""

    def __init__(self, shard=(1, 1), saved=()):
        self.shard = shard
        self.results = {index: result_of(index) for index in saved}

    def load(self, batch):
        return self.results.get(batch.index)

    def computing(self, batch):
        return suppress(JobsPending)

    def save(self, batch, result):
        self.results[batch.index] = result
        return result


def result_of(index):
    return BatchResult(pd.DataFrame({"batch": [index]}))


def run_all(store, unfinished=()):
    """The batches that gave results, and what `run` was called with."""
    calls = []

    def run(missing):
        calls.append([batch.index for batch in missing])
        if missing[0].index in unfinished:
            raise JobsPending
        return result_of(missing[0].index)

    return [(batch.index, int(result.rows["batch"][0])) for batch, result in run_batches(SPECS, store, run)], calls


@pytest.mark.parametrize(("shard", "indices"), [((1, 1), [0, 1, 2, 3, 4]), ((1, 2), [0, 2, 4]), ((2, 2), [1, 3])])
def test_a_shard_runs_every_nth_batch(shard, indices):
    results, _ = run_all(DictStore(shard))
    assert results == [(index, index) for index in indices]


def test_a_saved_batch_is_loaded_and_the_missing_ones_are_run_with_those_that_follow():
    results, calls = run_all(DictStore(saved=[0, 3]))
    assert sorted(results) == [(index, index) for index in range(5)]
    assert calls == [[1, 2, 4], [2, 4], [4]]


def test_a_batch_whose_jobs_are_not_finished_is_left_for_a_later_run():
    store = DictStore()
    results, _ = run_all(store, unfinished=[1, 4])
    assert [index for index, _ in results] == [0, 2, 3]
    assert run_all(store)[1] == [[1, 4], [4]]


def test_a_store_in_memory_warns_of_each_pair_that_failed():
    failed = BatchResult(pd.DataFrame(), (("7", "its logits are not finite"),))
    with pytest.warns(UserWarning, match="pair 7 has no rows: its logits are not finite"):
        assert MemoryStore().save(SPECS[0], failed) is failed
