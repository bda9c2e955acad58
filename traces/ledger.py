"""Jobs that are submitted now and collected later: which is which, in a file of the run's folder. No torch.

`jobs.json` holds a line for each session that was sent: its name (of the batch, and its place in it) and its id on the
deployment. A batch that is not finished raises `NotYet`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class NotYet(Exception):
    """What was submitted is not there yet; the message says how far it is."""


@dataclass
class Ledger:
    """The jobs of one run. While `begin` has named a batch, its sessions are submitted or collected, not waited for."""

    path: Path
    sending: bool
    jobs: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)  # name -> state
    batch: str = ""
    count: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            try:
                self.jobs = {str(name): str(job) for name, job in json.loads(self.path.read_text("utf-8")).items()}
            except (ValueError, AttributeError):
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
            self.jobs[name] = send()
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.jobs, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)  # before anything else, since the id is all there is of the job
        return self.jobs.get(name)

    def forget(self, name: str) -> None:
        """Send a job again the next time: it failed, or is lost."""
        self.jobs.pop(name, None)

    def sentence(self) -> str:
        """How many jobs are in which state."""
        counted = Counter(self.pending.values())
        states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counted.items()))
        return f"{len(self.pending)} jobs are not finished ({states}); collect them later: codi remote collect"
