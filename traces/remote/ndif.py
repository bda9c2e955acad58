"""A deployment of NDIF: jobs are sent there, waited for, sent again where a connection is lost; failures in sentences.

A job is one session. It is waited for on a websocket of its own, so that several can be in flight from one thread, and
what a killed server costs is the jobs in flight. The key is that of NDIF_API_KEY.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import nnsight
import websocket
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from nnsight.schema.response import ResponseModel, Status

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.model import grouped_attention as attention
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.remote.submitted_jobs import NotYet

LARGEST = 256 * 2**20  # bytes of a request: so many arrived, twice as many did not
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a job is sent again, doubled each time
PATIENCE = 60.0  # seconds that a host may take to answer the first time
KEY = "NDIF_API_KEY"
LOST = (
    ConnectionError, TimeoutError, httpx.TransportError, websocket.WebSocketConnectionClosedException,
    websocket.WebSocketTimeoutException, websocket.WebSocketBadStatusException,
)  # fmt: skip

REACHED: set[str] = set()  # hosts that took a job of this process: any other is not waited for
RESTARTING = ("Replica was evicted", "Critical server error", "Error submitting request")  # ndif's, of jobs it lost


class DeploymentError(ValueError):
    """A deployment that cannot be reached, refuses, or fails; the message says which and what to do."""


class Sent(AsyncRemoteBackend):
    """A request that was sent, and the websocket on which it is heard of."""

    state = "SENT"

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """Wait so long for news; the saved values once they are there."""
        assert isinstance(self.connection, websocket.WebSocket)
        self.connection.settimeout(seconds)
        try:
            message = self.connection.recv()
        except websocket.WebSocketTimeoutException:
            return None
        response = self.parse(message)
        return self.download_result(response.data) if self.note(response) else None

    def note(self, response: ResponseModel) -> bool:
        """Keep the state, and raise what failed there."""
        self.state = response.status.value
        if response.status == Status.ERROR:
            raise RemoteError(response.description)
        return response.status == Status.COMPLETED

    def _serialize(self, tracer: Any) -> bytes:
        blob = super()._serialize(tracer)
        if len(blob) > LARGEST:
            raise DeploymentError(
                f"a job's request is {len(blob) / 2**20:.0f} MiB, and more than {LARGEST / 2**20:.0f} are not known to "
                "arrive; use fewer pairs_per_batch, or remote.cells_per_job"
            )
        return blob


class Job:
    """A session that a deployment runs."""

    def __init__(self, model: CodiModel, body: Callable[[], Any], place: Remote) -> None:
        self.place, self.host = place, host_of(place)
        self.send = lambda: send(model, body, self.host)
        self.tries, self.wait, self.again = 0, FIRST_WAIT, 0.0  # `again`: when to send it, where it was lost
        self.value: Any = None
        self.done = False
        self.sent: Sent | None = None
        self.sent = self._sent()

    @property
    def state(self) -> str:
        """RECEIVED, QUEUED, DISPATCHED, RUNNING, COMPLETED; LOST while it waits to be sent again."""
        return "COMPLETED" if self.done else "LOST" if self.sent is None else self.sent.state

    def ready(self, seconds: float = 0.1) -> bool:
        """Whether the result is there; waits at most so long for news."""
        if self.done:
            return True
        if self.sent is None:
            time.sleep(min(seconds, max(0.0, self.again - time.monotonic())))
            if time.monotonic() >= self.again:
                self.sent = self._sent()
            return False
        try:
            found = self.sent.hear(seconds)
        except Exception as error:
            self._lost(error)
            return False
        if found is not None:
            self.value, self.done = found["value"], True
            self.sent.close()
        elif time.monotonic() > self.began + self.place.timeout:
            self.sent.close()
            raise DeploymentError(
                f"{self.host}: a job is still {self.state} after {self.place.timeout:g} seconds; try later, or raise "
                "remote.timeout"
            )
        return self.done

    def result(self) -> Any:
        """What the session's body returned; waits for it."""
        while not self.ready(1.0):
            pass
        return self.value

    def _sent(self) -> Sent | None:
        """Send it; None where that could not be, and it is to be tried again."""
        self.began = time.monotonic()
        try:
            return self.send()
        except Exception as error:
            self._lost(error)
            return None

    def _lost(self, error: Exception) -> None:
        """Try again later what a lost connection cost; raise, in a sentence, what another try would not mend."""
        if self.sent is not None:
            self.sent.close()
            self.sent = None
        if not is_passing(error) or self.tries >= self.place.retries or self.host not in REACHED:
            raise told(error, self.host) from error
        self.tries += 1
        self.again = time.monotonic() + self.wait
        self.wait = min(2 * self.wait, LONGEST_WAIT)


class LaterJob:
    """A session that is submitted, or of which the result is asked for, by the model's ledger; never waited for."""

    def __init__(self, model: CodiModel, body: Callable[[], Any], place: Remote) -> None:
        assert model.ledger is not None
        self.ledger, self.host = model.ledger, host_of(place)
        self.name, self.state, self.value = self.ledger.next(), "NOT SENT", None
        try:
            for _ in range(2):  # where it is lost, once more
                job = self.ledger.submitted(self.name, lambda: submit(model, partial(not_too_quick, body), self.host))
                if job is None:
                    break
                self.state = "SENT"
                self._ask(job)
                if self.value is not None or not self.ledger.is_lost(self.name):
                    break
                self.ledger.forget(self.name)
                self.state = "LOST"
        except Exception as error:
            raise told(error, self.host) from error

    def _ask(self, job: str) -> None:
        polled = RemoteBackend("", host=self.host, api_key=os.environ.get(KEY), blocking=False, job_id=job)
        polled.display.enabled = False
        try:
            found = polled.poll()
        except RemoteError:
            self.ledger.forget(self.name)
            raise
        self.state = polled.status.value if polled.status is not None else "SENT"
        self.value = None if found is None else found["value"]

    def ready(self, seconds: float = 0.0) -> bool:
        """What is not there by now is not waited for."""
        return True

    def result(self) -> Any:
        if self.value is None:
            self.ledger.pending[self.name] = self.state
            raise NotYet(f"{self.name} is {self.state}")
        return self.value


def not_too_quick(body: Callable[[], Any]) -> Any:
    """Runs there. ndif may note that a job is queued after it has noted that it is completed, if that was quick."""
    time.sleep(2.0)
    return body()


def submit(model: CodiModel, body: Callable[[], Any], host: str) -> str:
    """Submit a session, and come back with its id."""
    lm = model.lm
    sent = RemoteBackend(lm.to_model_key(), host=host, api_key=os.environ.get(KEY), env=env_of(model), blocking=False)
    sent.display.enabled = False
    with lm.session(backend=sent):
        value = nnsight.save(body())  # noqa: F841  (it comes back by this name)
    assert sent.job_id is not None
    return sent.job_id


def env_of(model: CodiModel) -> dict[str, Any]:
    """What a request asks of the deployment's model: the adapter, and an attention that it has."""
    env = model.lm._remoteable_get_env()
    ours = env["attn_implementation"] == attention.NAME
    return {**env, "attn_implementation": "sdpa"} if ours else env


def greet(place: Remote) -> dict[str, Any]:
    """What a deployment says of itself, `/status`; raises `DeploymentError`, at once, where none answers."""
    host = host_of(place)
    try:
        answer = httpx.get(f"{host}/status", timeout=httpx.Timeout(10.0, read=60.0))
        answer.raise_for_status()
        return answer.json()
    except httpx.HTTPStatusError as error:
        found = f"answers {error.response.status_code} to /status"
        raise DeploymentError(f"{host}: {found}; is it an NDIF deployment?") from None
    except ValueError:
        raise DeploymentError(f"{host}: /status is no JSON; is it an NDIF deployment?") from None
    except Exception as error:
        raise told(error, host) from error


def send(model: CodiModel, body: Callable[[], Any], host: str) -> Sent:
    """Send a session and come back at once."""
    lm = model.lm
    sent = Sent(lm.to_model_key(), host=host, api_key=os.environ.get(KEY), env=env_of(model))
    before = websocket.getdefaulttimeout()
    websocket.setdefaulttimeout(PATIENCE)  # nnsight gives none, and would wait for ever where nobody answers
    try:
        with lm.session(backend=sent):
            value = nnsight.save(body())  # noqa: F841  (it comes back by this name)
    except Exception:
        sent.close()
        raise
    finally:
        websocket.setdefaulttimeout(before)
    REACHED.add(host)
    return sent


def host_of(place: Remote) -> str:
    """The deployment's address; nnsight's own, the public one, where none is given."""
    return (place.host or nnsight.CONFIG.API.HOST).rstrip("/")


def is_passing(error: Exception) -> bool:
    """Whether a failure may be over in a moment: a lost connection, a server that restarts."""
    cause = cause_of(error)
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code in (502, 503, 504)
    return isinstance(cause, LOST) or any(sign in str(error) for sign in RESTARTING)


def cause_of(error: Exception) -> BaseException:
    """What a failure to send was caused by, and any other failure itself."""
    return error.__cause__ if isinstance(error, RemoteError) and error.__cause__ is not None else error


def told(error: Exception, host: str) -> Exception:
    """What a failure is, in a sentence."""
    cause = cause_of(error)
    text = str(error).removeprefix("Failed to send request: ").strip()
    if isinstance(error, DeploymentError):
        return error
    if isinstance(cause, ConnectionRefusedError) or "onnection refused" in text:
        return DeploymentError(f"{host}: the connection is refused; is a deployment running there?")
    if isinstance(cause, websocket.WebSocketAddressException) or any(
        sign in text for sign in ("ame or service not known", "name resolution")
    ):
        return DeploymentError(f"{host}: this address is not known; look at remote.host")
    if "API key" in text:
        said = text.partition(". ")[0].partition(":")[0].rstrip(".")  # without the key itself
        return DeploymentError(f"{host}: {said}; set {KEY} to a key of this deployment")
    if "deploy this model" in text:
        return DeploymentError(f"{host}: {last_line(text)}; name a base that it can load in remote.base")
    if "adapter_config.json" in text:
        return DeploymentError(f"{host}: {last_line(text)}; name an adapter that it can load in remote.adapter")
    if "out of memory" in text:
        return MemoryError(f"{host}: memory ran out there: {last_line(text)}")
    if isinstance(cause, LOST):
        return DeploymentError(
            f"{host}: the connection was lost ({last_line(text) or type(cause).__name__}); run it again, it goes on"
        )
    if is_passing(error):
        return DeploymentError(f"{host}: is not available now ({last_line(text)}); run it again, it goes on")
    return DeploymentError(f"{host}: the job failed there: {last_line(text) or type(error).__name__}")


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500].rstrip(".") if lines else ""
