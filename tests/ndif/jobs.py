"""Small jobs for a server, and ways to wait for them: each wait is for a condition, with a deadline."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from nnsight.intervention.backends.remote import RemoteError

from tests.support.places import EMBEDDED
from tests.support.waiting import DEADLINE, wait_until

BASE = str(EMBEDDED / "base")
ADAPTER = str(EMBEDDED / "thought" / "adapter")
IDS = [[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]]
SETTLED = 1.0  # seconds


def text_model(repo: str = BASE, **options):
    """The base under nnsight: without weights, or with them where `dispatch=True`."""
    import torch
    from nnsight import TransformersModel
    from nnsight.modeling import huggingface
    from transformers import AutoTokenizer

    huggingface._ID_CACHE[repo] = repo  # else nnsight asks the Hub how a folder's name is spelled
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return TransformersModel(BASE, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, **options)


def logits(model, **where):
    """The logits of two questions in one trace."""
    import torch

    ids = torch.tensor(IDS)
    with model.trace(input_ids=ids, **where):
        found = model.lm_head.output.save()
    return found.detach()


def refused(match: str):
    return pytest.raises(RemoteError, match=match)


class Gate:
    """A folder through which a job reports that it started, and waits until the client lets it go on.

    The server and its sandboxes run on this machine and see the same files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = str(folder)

    @property
    def is_reached(self) -> bool:
        return Path(self.folder, "reached").exists()

    def open(self) -> None:
        Path(self.folder, "open").touch()


def wait_at(gate: str, seconds: float = DEADLINE) -> None:
    """Runs on the server: report that the job started, and wait until the gate is open."""
    import os
    import time

    open(os.path.join(gate, "reached"), "w").close()
    end = time.monotonic() + seconds
    while not os.path.exists(os.path.join(gate, "open")):
        if time.monotonic() > end:
            raise TimeoutError(f"the gate {gate} was not opened in {seconds} s")
        time.sleep(0.05)


def gated_logits(model, gate: Gate, **where):
    """Submit the logits as a job that waits at a gate; returns its backend."""
    import torch

    ids, folder = torch.tensor(IDS), gate.folder
    with model.trace(input_ids=ids, remote=True, **where) as job:
        wait_at(folder)
        found = model.lm_head.output.save()
        _ = found
    return job.backend


def state(backend) -> str | None:
    """A submitted job's state, asked for anew."""
    backend.poll()
    return None if backend.status is None else backend.status.value


def wait_until_running(backend) -> None:
    """Wait until a job that stands at its gate has been RUNNING for a second.

    ndif's dispatcher writes QUEUED, and the model's actor RUNNING and COMPLETED, without an order between them: a job
    that completes before QUEUED is written seems queued for ever. After this wait the gate may be opened.
    """
    since = time.monotonic()

    def settled() -> bool:
        nonlocal since
        if state(backend) != "RUNNING":
            since = time.monotonic()
        return time.monotonic() - since > SETTLED

    wait_until(settled, "a job to run")


def collect(backend) -> dict:
    """Poll a job until its result is there."""
    results = []

    def arrived() -> bool:
        results.append(backend.poll())
        return results[-1] is not None

    wait_until(arrived, "a job's result", every=0.1)
    return results[-1]
