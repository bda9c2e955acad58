"""Jobs that are submitted now and collected later: which is which, in a file of the run's folder. No torch.

`jobs.json` holds, for each session that was sent, its name (of the batch, and its place in it), its id on the
deployment, and when it was sent. A batch that is not finished raises `NotYet`.
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


class Submitted(NamedTuple):
    """A job's id, and when it was sent (seconds since 1970)."""

    job: str
    sent: float


class NotYet(Exception):
    """What was submitted is not there yet; the message says how far it is."""


@dataclass
class Ledger:
    """The jobs of one run. While `begin` has named a batch, its sessions are submitted or collected, not waited for."""

    path: Path
    sending: bool
    patience: float = 3600.0  # seconds after which a job counts as lost, and may be sent again
    jobs: dict[str, Submitted] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)  # name -> state
    batch: str = ""
    count: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            try:
                told = json.loads(self.path.read_text("utf-8"))
                self.jobs = {name: Submitted(str(job), float(sent)) for name, (job, sent) in told.items()}
            except (ValueError, TypeError, AttributeError):
                raise ValueError(f"{self.path}: is not whole JSON; delete it, and submit again") from None

    def begin(self, batch: str) -> None:
        """The sessions that follow are this batch's; none's, where it has no name."""
        self.batch, self.count = batch, 0

    def next(self) -> str:
        """The next session's name."""
        self.count += 1
        return f"{self.batch}.{self.count}"

    def submitted(self, name: str, send: Callable[[], str]) -> str | None:
        """A session's id; sent where it is not, and that is wanted."""
        if name not in self.jobs and self.sending:
            self.jobs[name] = Submitted(send(), time.time())
            self._write()  # before anything else, since the id is all there is of the job
        return self.jobs[name].job if name in self.jobs else None

    def forget(self, name: str) -> None:
        """Send a job again the next time: it failed, or is lost."""
        self.jobs.pop(name, None)
        self._write()

    def is_lost(self, name: str) -> bool:
        """Whether a job has been away for too long: one that was queued when a server restarted stays so for ever."""
        return name in self.jobs and time.time() > self.jobs[name].sent + self.patience

    def _write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.jobs, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def sentence(self) -> str:
        """How many jobs are in which state."""
        counted = Counter(self.pending.values())
        states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counted.items()))
        return f"{len(self.pending)} jobs are not finished ({states}); collect them later: codi remote collect"
