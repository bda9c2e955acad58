"""What fails on a deployment is said in a sentence; what is lost is sent again, what is hopeless is not."""

import httpx
import pytest
from nnsight.intervention.backends.remote import RemoteError
from websocket import WebSocketAddressException, WebSocketConnectionClosedException

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.remote import ndif as deployment
from codi_tracing.traces.remote.ndif import DeploymentError, NdifJob, address_of, explained, is_temporary

HOST = "http://a.host"


def sent_badly(text: str, status: int | None = None) -> RemoteError:
    """What nnsight raises where a request was not taken."""
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
        (sent_badly("[Errno 111] Connection refused"), "the connection is refused"),
        (
            WebSocketAddressException("[Errno -2] Name or service not known"),
            "this address is unknown; check remote.host",
        ),
        (
            sent_badly("Missing or invalid API key. Get one", 401),
            "Missing or invalid API key; set",
        ),
        (sent_badly("Invalid API key format: 'secret'", 400), "Invalid API key format; set NDIF_API_KEY"),
        (
            RemoteError("Could not deploy this model. could not read 'a/b' from the Hub."),
            "name a base that it can",
        ),
        (RemoteError("Traceback\nValueError: Can't find 'adapter_config.json' at '/x'"), "name an adapter that it can"),
        (
            RemoteError("Traceback\n  line\nIndexError: index 100 is out of bounds"),
            "the job failed there: IndexError:",
        ),
        (sent_badly("Service temporarily unavailable.", 503), "is not available now (Service temporarily unavailable)"),
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


def test_memory_that_runs_out_there_is_memory_that_ran_out():
    assert isinstance(explained(RemoteError("torch.OutOfMemoryError: CUDA out of memory. Tried"), HOST), MemoryError)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (WebSocketConnectionClosedException("gone"), True),
        (ConnectionResetError(), True),
        (httpx.ReadTimeout("slow"), True),
        (sent_badly("Service temporarily unavailable", 503), True),
        (RemoteError("Replica was evicted while processing your request."), True),
        (sent_badly("Internal server error.", 500), False),
        (sent_badly("Invalid API key.", 403), False),
        (RemoteError("IndexError"), False),
        (ValueError("a bug of ours"), False),
    ],
)
def test_a_lost_connection_passes_and_a_refusal_does_not(error, passing):
    assert is_temporary(error) is passing


class Line:
    """Stands for a request that was sent: what is heard of it, one after the other."""

    state = "RUNNING"

    def __init__(self, *heard):
        self.heard, self.closed = list(heard), False

    def poll_socket(self, seconds):
        news = self.heard.pop(0)
        if isinstance(news, Exception):
            raise news
        return news

    def close(self):
        self.closed = True


@pytest.fixture
def job(monkeypatch):
    """A job whose requests are what a test says they are."""
    monkeypatch.setattr(deployment, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(deployment, "REACHED", {HOST})

    def make(*lines, **place):
        lines = list(lines)
        monkeypatch.setattr(deployment, "send", lambda *_: lines.pop(0))
        return NdifJob(None, None, Remote(host=HOST, **place))

    return make


def test_a_job_whose_connection_is_lost_is_sent_again_and_waits_longer_each_time(job):
    lost = [Line(None, ConnectionResetError()) for _ in range(2)]
    sent = job(*lost, Line(None, {"value": 7}), retries=2)
    assert sent.result() == 7
    assert (sent.tries, sent.state) == (2, "COMPLETED")
    assert sent.wait == pytest.approx(0.04)
    assert all(line.closed for line in lost)


def test_a_job_is_given_up_after_so_many_tries(job):
    with pytest.raises(DeploymentError, match="the connection was lost"):
        job(*[Line(ConnectionResetError()) for _ in range(3)], retries=2).result()


def test_a_job_that_takes_too_long_is_given_up(job):
    line = Line(*[None] * 1000)
    with pytest.raises(DeploymentError, match="a job is still RUNNING after 1e-09 seconds; try later, or raise remote"):
        job(line, timeout=1e-9).result()
    assert line.closed


def test_a_request_too_large_to_arrive_is_not_sent(monkeypatch):
    from nnsight.intervention.backends.remote import RemoteBackend

    monkeypatch.setattr(RemoteBackend, "_serialize", lambda self, tracer: b"x" * (3 * 2**20))
    monkeypatch.setattr(deployment, "LARGEST_REQUEST", 2**20)
    with pytest.raises(DeploymentError, match="a job's request is 3 MiB, and more than 1 are not known to arrive"):
        deployment.JobRequest("key", host=HOST)._serialize(None)


def test_an_address_is_taken_without_its_last_slash_and_nnsights_own_where_none_is_given(monkeypatch):
    import nnsight

    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "https://its.own/")
    assert address_of(Remote(host="http://a.host/")) == HOST
    assert address_of(Remote()) == "https://its.own"


def test_what_is_no_deployment_is_told_apart_from_one_that_is_away(monkeypatch):
    def answer(code, text):
        request = httpx.Request("GET", HOST)
        monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(code, text=text, request=request))
        return deployment.deployment_status(Remote(host=HOST))

    assert answer(200, '{"deployments": {}}') == {"deployments": {}}
    with pytest.raises(DeploymentError, match="answers 404 to /status; is it an NDIF deployment?"):
        answer(404, "")
    with pytest.raises(DeploymentError, match="/status is no JSON; is it an NDIF deployment?"):
        answer(200, "<html>")


def test_a_plan_names_the_limit_that_a_request_is_held_to():
    from codi_tracing.patching.plan import cost as costs

    assert costs.LARGEST == deployment.LARGEST_REQUEST
