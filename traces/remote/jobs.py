"""Jobs on an NDIF deployment: sent, waited for, and sent again after a lost connection.

A job is one session. Each has its own websocket, so that several are in flight from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import nnsight
from nnsight.intervention.backends.remote import RemoteError
from nnsight.schema.response import ResponseModel, Status

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.grouped_attention import NAME as GROUPED
from codi_tracing.traces.remote.guarded_backend import GuardedBackend, GuardedStream
from codi_tracing.traces.remote.ndif import DeploymentError, address_of, explained, is_temporary
from codi_tracing.traces.remote.submitted_jobs import JobsPending

LARGEST_REQUEST = 256 * 2**20  # bytes; this size arrived, twice as much did not
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a job is sent again, doubled each time

REACHED: set[str] = set()  # addresses that accepted a job of this process; only these are tried again


class JobRequest(GuardedStream):
    """A request that was sent, and its websocket."""

    state = "SENT"

    def poll_socket(self, seconds: float) -> dict[str, Any] | None:
        """Wait up to `seconds` for a message; returns the saved values once they arrive."""
        message = self.receive_message(seconds)
        if message is None:
            return None
        response = self.parse(message)
        return self.download_result(response.data) if self.note(response) else None

    def note(self, response: ResponseModel) -> bool:
        """Record the job's state; raises if the job failed."""
        self.state = response.status.value
        if response.status == Status.ERROR:
            raise RemoteError(response.description)
        return response.status == Status.COMPLETED

    def _serialize(self, tracer: Any) -> bytes:
        blob = super()._serialize(tracer)
        if len(blob) > LARGEST_REQUEST:
            raise DeploymentError(
                f"a job's request is {len(blob) / 2**20:.0f} MiB, and more than {LARGEST_REQUEST / 2**20:.0f} are not "
                "known to arrive; use fewer pairs_per_batch, or remote.cells_per_job"
            )
        return blob


class NdifJob:
    """A session on a deployment that is waited for."""

    def __init__(self, model: CodiModel, body: Callable[[], Any], deployment: Remote) -> None:
        self.deployment, self.address = deployment, address_of(deployment)
        self.send = lambda: send(model, body, self.address)
        self.tries, self.wait, self.retry_at = 0, FIRST_WAIT, 0.0
        self.value: Any = None
        self.done = False
        self.request: JobRequest | None = None  # None while it waits to be sent again
        self._send()

    @property
    def state(self) -> str:
        """RECEIVED, QUEUED, DISPATCHED, RUNNING, COMPLETED; LOST while it waits to be sent again."""
        return "COMPLETED" if self.done else "LOST" if self.request is None else self.request.state

    def ready(self, seconds: float = 0.1) -> bool:
        """Whether the result has arrived; waits up to `seconds` for it."""
        if self.done:
            return True
        if self.request is None:
            time.sleep(min(seconds, max(0.0, self.retry_at - time.monotonic())))
            if time.monotonic() >= self.retry_at:
                self._send()
            return False
        try:
            saved = self.request.poll_socket(seconds)
        except Exception as error:
            self._retry_later(error)
            return False
        if saved is not None:
            self.value, self.done = saved["value"], True
            self.request.close()
        elif time.monotonic() > self.began + self.deployment.timeout:
            self.request.close()
            raise DeploymentError(
                f"{self.address}: a job is still {self.state} after {self.deployment.timeout:g} seconds; try later, or "
                "raise remote.timeout"
            )
        return self.done

    def result(self) -> Any:
        """The value that the session's body returned; waits for it."""
        while not self.ready(1.0):
            pass
        return self.value

    def _send(self) -> None:
        self.began = time.monotonic()
        try:
            self.request = self.send()
        except Exception as error:
            self._retry_later(error)

    def _retry_later(self, error: Exception) -> None:
        """Schedule another try after a lost connection; raise any other failure as a sentence."""
        if self.request is not None:
            self.request.close()
            self.request = None
        if not is_temporary(error) or self.tries >= self.deployment.retries or self.address not in REACHED:
            raise explained(error, self.address) from error
        self.tries += 1
        self.retry_at = time.monotonic() + self.wait
        self.wait = min(2 * self.wait, LONGEST_WAIT)


class SubmittedJob:
    """A session that the model's ledger submits, or whose result it asks for; never waited for."""

    def __init__(self, model: CodiModel, body: Callable[[], Any], deployment: Remote) -> None:
        self.ledger, self.address = model.ledger, address_of(deployment)
        self.name, self.state, self.value = self.ledger.next(), "NOT SENT", None
        try:
            for _ in range(2):  # a lost job is submitted once more
                job = self.ledger.submitted(self.name, lambda: submit(model, partial(delayed, body), self.address))
                if job is None:
                    break
                self._ask(job)
                if self.value is not None or not self.ledger.is_lost(self.name):
                    break
                self.ledger.forget(self.name)
                self.state = "LOST"
        except Exception as error:
            raise explained(error, self.address) from error

    def _ask(self, job: str) -> None:
        polled = GuardedBackend("", host=self.address, blocking=False, job_id=job)
        try:
            saved = polled.poll()
        except RemoteError:
            self.ledger.forget(self.name)
            raise
        self.state = polled.status.value if polled.status is not None else "SENT"
        self.value = None if saved is None else saved["value"]

    def ready(self) -> bool:
        return True

    def result(self) -> Any:
        """The value that the session's body returned; raises `JobsPending` if it has not arrived."""
        if self.value is None:
            self.ledger.pending[self.name] = self.state
            raise JobsPending(f"{self.name} is {self.state}")
        return self.value


def delayed(body: Callable[[], Any]) -> Any:
    """Runs there: of a very quick job, ndif may record QUEUED after COMPLETED."""
    time.sleep(2.0)
    return body()


def submit(model: CodiModel, body: Callable[[], Any], address: str) -> str:
    """Submit a session and return its id."""
    lm = model.lm
    backend = GuardedBackend(lm.to_model_key(), host=address, env=request_env(model), blocking=False)
    with lm.session(backend=backend):
        value = nnsight.save(body())  # noqa: F841  (the result has this name)
    assert backend.job_id is not None
    return backend.job_id


def send(model: CodiModel, body: Callable[[], Any], address: str) -> JobRequest:
    """Send a session and return at once."""
    lm = model.lm
    request = JobRequest(lm.to_model_key(), host=address, env=request_env(model))
    try:
        with lm.session(backend=request):
            value = nnsight.save(body())  # noqa: F841  (the result has this name)
    except Exception:
        request.close()
        raise
    REACHED.add(address)
    return request


def request_env(model: CodiModel) -> dict[str, Any]:
    """The model settings of a request: the adapter, and an attention that a deployment has."""
    env = model.lm._remoteable_get_env()
    return {**env, "attn_implementation": "sdpa"} if env["attn_implementation"] == GROUPED else env
