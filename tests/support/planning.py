"""Configs and plans of them, and the batches that a run of a config would divide its sweeps into."""

from __future__ import annotations

from pathlib import Path

from codi_tracing.analysis.table import empty_table
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine.batch_store import BatchResult, MemoryStore
from codi_tracing.patching.engine.table_rows import ROW_ORDER
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.pairs.selection import select_pairs
from codi_tracing.patching.plan.count import Plan, plan_run
from codi_tracing.patching.plan.inputs import load_inputs
from codi_tracing.patching.runs.recipes import RunExecutor, run_recipe

ROOT = Path(__file__).parents[2]
SHIPPED, PAIRS = ROOT / "traces/embedded/thought", ROOT / "patching/data/arithmetic_pairs.json"
EVERY_KIND = {  # every kind of site, source and metric
    "kinds": ("resid", "head"),
    "sources": ("other", "unrelated", "noise"),
    "draws": 2,
    "knockouts": ("answer-question", "4-1@2"),
    "metrics": ("kl_from_corrupted", "logprob_clean", "logit_difference_at_eot", "edit_norm"),
}


def config_of(experiment="sweep", folder=SHIPPED, limit=3, file=PAIRS, **others) -> RunConfig:
    pairs = {"file": file, "limit": limit}
    return RunConfig(name="planned", checkpoint=folder, pairs=pairs, experiment=experiment, device="cpu", **others)


def plan_of(config: RunConfig, shard=None, **given) -> Plan:
    return plan_run(config, load_inputs(config, **given), shard)


def first_batches(model, config: RunConfig) -> list:
    """What a run would record of the first batch of each of its sweeps; no batch is run."""
    store = SpecStore()
    run_recipe(RunExecutor(model, select_pairs(model, load_pairs(config.pairs.file), config), config, lambda: store))
    return [batch for batch in store.specs if batch.index == 0]


class SpecStore(MemoryStore):
    """Collects the batches of a run, and gives each a result without rows, so that none is run."""

    def __init__(self):
        self.specs = []

    def load(self, batch):
        self.specs.append(batch)
        return BatchResult(empty_table().assign(**dict.fromkeys(ROW_ORDER, 0)))
