"""Every failure on a deployment is one sentence; a lost job is sent again, a refused one is not."""

import httpx
import pytest
from nnsight.intervention.backends.remote import RemoteError
from websocket import WebSocketAddressException, WebSocketConnectionClosedException

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.remote import jobs
from codi_tracing.traces.remote.jobs import NdifJob
from codi_tracing.traces.remote.ndif import DeploymentError, address_of, explained, is_temporary
from codi_tracing.traces.remote.responses import ask_json
from tests.support.scripted_host import Host, http

HOST = "https://a.host"


def send_error(text: str, status: int | None = None) -> RemoteError:
    """nnsight's error after a request that was not accepted."""
    error = RemoteError(f"Failed to send request: {text}")
    if status is not None:
        request = httpx.Request("POST", HOST)
        error.__cause__ = httpx.HTTPStatusError(text, request=request, response=httpx.Response(status))
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ConnectionRefusedError(111, "Connection refused"),
            "the connection is refused; is a deployment running there?",
        ),
        (send_error("[Errno 111] Connection refused"), "the connection is refused"),
        (
            WebSocketAddressException("[Errno -2] Name or service not known"),
            "this address is unknown; check remote.host",
        ),
        (
            send_error("Missing or invalid API key. Get one", 401),
            "Missing or invalid API key; set",
        ),
        (send_error("Invalid API key format: 'secret'", 400), "Invalid API key format; set NDIF_API_KEY"),
        (
            RemoteError("Could not deploy this model. could not read 'a/b' from the Hub."),
            "name a base that it can",
        ),
        (RemoteError("Traceback\nValueError: Can't find 'adapter_config.json' at '/x'"), "name an adapter that it can"),
        (
            RemoteError("Traceback\n  line\nIndexError: index 100 is out of bounds"),
            "the job failed there: IndexError:",
        ),
        (send_error("Service temporarily unavailable.", 503), "is not available now (Service temporarily unavailable)"),
        (WebSocketConnectionClosedException("gone"), "the connection was lost (gone); run it again to resume"),
    ],
)
def test_every_failure_is_one_sentence_that_names_the_host_and_what_to_do(error, sentence):
    said = explained(error, HOST)
    assert isinstance(said, DeploymentError)
    assert str(said).startswith(f"{HOST}: ")
    assert sentence in str(said)
    assert "\n" not in str(said)
    assert "secret" not in str(said)


def test_memory_that_runs_out_on_a_deployment_is_a_memory_error():
    assert isinstance(explained(RemoteError("torch.OutOfMemoryError: CUDA out of memory. Tried"), HOST), MemoryError)


@pytest.mark.parametrize(
    ("error", "temporary"),
    [
        (WebSocketConnectionClosedException("gone"), True),
        (ConnectionResetError(), True),
        (httpx.ReadTimeout("slow"), True),
        (send_error("Service temporarily unavailable", 503), True),
        (RemoteError("Replica was evicted while processing your request."), True),
        (send_error("Internal server error.", 500), False),
        (send_error("Invalid API key.", 403), False),
        (RemoteError("IndexError"), False),
        (ValueError("a bug of ours"), False),
    ],
)
def test_a_lost_connection_is_temporary_and_a_refusal_is_not(error, temporary):
    assert is_temporary(error) is temporary


class ScriptedRequest:
    """A request whose messages are given."""

    state = "RUNNING"

    def __init__(self, *messages):
        self.messages, self.closed = list(messages), False

    def poll_socket(self, seconds):
        message = self.messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    def close(self):
        self.closed = True


@pytest.fixture
def job(monkeypatch):
    """A job with scripted requests."""
    monkeypatch.setattr(jobs, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(jobs, "REACHED", {HOST})

    def make(*lines, **place):
        lines = list(lines)
        monkeypatch.setattr(jobs, "send", lambda *_: lines.pop(0))
        return NdifJob(None, None, Remote(host=HOST, **place))

    return make


def test_a_job_whose_connection_is_lost_is_sent_again_and_waits_longer_each_time(job):
    lost = [ScriptedRequest(None, ConnectionResetError()) for _ in range(2)]
    sent = job(*lost, ScriptedRequest(None, {"value": 7}), retries=2)
    assert sent.result() == 7
    assert (sent.tries, sent.state) == (2, "COMPLETED")
    assert sent.wait == pytest.approx(0.04)
    assert all(line.closed for line in lost)


def test_a_job_fails_after_the_last_retry(job):
    with pytest.raises(DeploymentError, match="the connection was lost"):
        job(*[ScriptedRequest(ConnectionResetError()) for _ in range(3)], retries=2).result()


def test_a_job_that_exceeds_the_timeout_fails(job):
    line = ScriptedRequest(*[None] * 1000)
    with pytest.raises(DeploymentError, match="a job is still RUNNING after 1e-09 seconds; try later, or raise remote"):
        job(line, timeout=1e-9).result()
    assert line.closed


def test_a_request_above_the_largest_size_is_not_sent(monkeypatch):
    from nnsight.intervention.backends.remote import RemoteBackend

    monkeypatch.setattr(RemoteBackend, "_serialize", lambda self, tracer: b"x" * (3 * 2**20))
    monkeypatch.setattr(jobs, "LARGEST_REQUEST", 2**20)
    with pytest.raises(DeploymentError, match="a job's request is 3 MiB, and more than 1 are not known to arrive"):
        jobs.JobRequest("key", host=HOST)._serialize(None)


def test_an_address_loses_its_last_slash_and_defaults_to_nnsights(monkeypatch):
    import nnsight

    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "https://its.own/")
    assert address_of(Remote(host="https://a.host/")) == HOST
    assert address_of(Remote()) == "https://its.own"


def test_a_server_that_is_no_deployment_is_named_as_such():
    with Host().running() as host:
        host.answers = {"/good": http(b'{"deployments": {}}'), "/list": http(b"[]"), "/page": http(b"<html>")}
        assert ask_json(Remote(host=host.address), "/good") == {"deployments": {}}
        with pytest.raises(DeploymentError, match="answers 404 to /status; is it an NDIF deployment?"):
            ask_json(Remote(host=host.address), "/status")
        for path, found in (("/page", "is no JSON"), ("/list", "is no JSON object")):
            with pytest.raises(DeploymentError, match=f"{path} {found}; is it an NDIF deployment?"):
                ask_json(Remote(host=host.address), path)


def test_a_plan_uses_the_same_largest_request():
    from codi_tracing.patching.plan import cost as costs

    assert costs.REQUEST_LIMIT == jobs.LARGEST_REQUEST
