"""Jobs that are submitted now and collected later, listed in `jobs.json` of the run folder. No torch.

The file holds, for each submitted session, its name (batch and index within it), its id on the deployment, and the time
of submission.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from codi_tracing.configs.files import read_utf8


class JobRecord(NamedTuple):
    """A job's id, and when it was submitted (seconds since 1970)."""

    job: str
    submitted: float


class JobsPending(Exception):
    """Submitted jobs have no result yet; the message gives their states."""


@dataclass
class Ledger:
    """The jobs of one run. After `begin` names a batch, its sessions are submitted or collected, never waited for."""

    path: Path
    sending: bool
    patience: float = 3600.0  # seconds after which a job counts as lost, and may be submitted again
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)  # name -> state
    batch: str = ""
    count: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            try:
                records = json.loads(read_utf8(self.path))
                self.jobs = {name: JobRecord(str(job), float(sent)) for name, (job, sent) in records.items()}
            except (ValueError, TypeError, AttributeError):
                raise ValueError(f"{self.path}: is not whole JSON; delete it, and submit again") from None

    def begin(self, batch: str) -> None:
        """The next sessions belong to this batch; an empty name ends a batch."""
        self.batch, self.count = batch, 0

    def next(self) -> str:
        """The next session's name."""
        self.count += 1
        return f"{self.batch}.{self.count}"

    def submitted(self, name: str, send: Callable[[], str]) -> str | None:
        """A session's job id; None if it was not submitted and this ledger only collects."""
        if name not in self.jobs and self.sending:
            self.jobs[name] = JobRecord(send(), time.time())
            self._write()  # at once: without its id the job is lost
        return self.jobs[name].job if name in self.jobs else None

    def forget(self, name: str) -> None:
        """Drop a job that failed or is lost, so that it is submitted again."""
        self.jobs.pop(name, None)
        self._write()

    def is_lost(self, name: str) -> bool:
        """Whether a job exceeds `patience`: a job that was queued when a server restarted never runs."""
        return name in self.jobs and time.time() > self.jobs[name].submitted + self.patience

    def _write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.jobs, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def sentence(self) -> str:
        """The number of unfinished jobs in each state."""
        counted = Counter(self.pending.values())
        states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counted.items()))
        return f"{len(self.pending)} jobs are not finished ({states}); collect them later: codi remote collect"
