"""The project's own sweep of the same grid."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sources import other
from tests.bench.job import Job

Place = tuple[str, int, int | None]  # pair, layer, step


def swept(job: Job, decode: bool = False, **options: Any) -> pd.DataFrame:
    """The sweep's table: logit differences, and with `decode` the answers too."""
    cells = make_cells(job.sites, (other,), ("denoising",))
    metrics = ["logit_difference", "answer"] if decode else ["logit_difference"]
    return sweep_cells(job.model, job.ready, cells, metrics=metrics, **options)


def values_of(job: Job, table: pd.DataFrame, metric: str = "logit_difference") -> Tensor:
    """One metric of the table as `[pair, cell]`, in the job's order."""
    chosen = table[table["metric"] == metric]
    columns = zip(chosen["pair_id"], chosen["layer"], chosen["step"], chosen["patched"], strict=True)
    values = {(str(pair), int(layer), None if pd.isna(step) else int(step)): v for pair, layer, step, v in columns}
    assert len(values) == len(chosen) == job.cells, f"{len(chosen)} rows for {job.cells} cells"
    return torch.tensor(
        [[values[str(p.pair.pair_id), s.layer, s.step] for s in job.sites] for p in job.ready], dtype=torch.float64
    )
