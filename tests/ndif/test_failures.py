"""The errors that a client gets when something fails: retries and messages are built on these facts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from nnsight.intervention.backends.remote import RemoteBackend

from tests.ndif.jobs import (
    IDS,
    Gate,
    collect,
    gated_logits,
    logits,
    refused,
    state,
    text_model,
    wait_until_running,
)
from tests.ndif.server import LARGEST_REQUEST, Server
from tests.support.waiting import DEADLINE, wait_until


def asking_for(repo: str):
    """A client of a model that it was never built from."""
    from nnsight.modeling import huggingface

    model = text_model()
    model.repo_id = huggingface._ID_CACHE[repo] = repo
    return model


def test_a_model_that_does_not_exist_is_refused_with_the_servers_reason(plain_server: Server) -> None:
    with refused("Could not deploy this model. could not read 'nobody/nothing' from the Hub"):
        logits(asking_for("nobody/nothing"), remote=True)
    with refused("Could not deploy this model. Repo id must be in the form"):
        logits(asking_for("/nowhere/base"), remote=True)


def test_an_adapter_that_the_server_does_not_have_is_refused(plain_server: Server) -> None:
    model = text_model()
    model.peft = "/nowhere/adapter"
    with refused("Can't find 'adapter_config.json' at '/nowhere/adapter'"):
        logits(model, remote=True)


def test_an_attention_that_the_server_does_not_have_is_refused(plain_server: Server) -> None:
    model = text_model()
    model._module.config._attn_implementation = "grouped_sdpa"
    with refused('Specified `attn_implementation="grouped_sdpa"` is not supported'):
        logits(model, remote=True)
    assert logits(text_model(), remote=True).equal(logits(text_model(dispatch=True)))


def test_an_error_inside_the_block_comes_back_with_its_line(plain_server: Server) -> None:
    import torch

    model, ids = text_model(), torch.tensor(IDS)
    with (
        refused(r"far_out = model\.lm_head\.output\[100\][\s\S]*IndexError: index 100 is out of bounds"),
        model.trace(input_ids=ids, remote=True),
    ):
        far_out = model.lm_head.output[100].save()
        _ = far_out


def test_an_address_without_a_server_raises_pythons_own_errors(plain_server: Server) -> None:
    from websocket import WebSocketAddressException

    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        logits(text_model(), remote="http://127.0.0.1:9")
    with pytest.raises(WebSocketAddressException, match="name resolution|not known"):
        logits(text_model(), remote="http://nobody.invalid")
    with pytest.raises(ValueError, match="must start with http:// or https://"):
        logits(text_model(), remote="127.0.0.1:8001")


def test_without_blocking_a_refused_connection_is_a_remote_error_and_a_poll_is_httpx(plain_server: Server) -> None:
    import httpx

    with refused("Failed to send request: .*Connection refused"):
        logits_later(remote="http://127.0.0.1:9")
    with pytest.raises(httpx.ConnectError, match="Connection refused"):
        RemoteBackend("", host="http://127.0.0.1:9", blocking=False, job_id="0" * 32).poll()


def logits_later(**where) -> None:
    import torch

    model, ids = text_model(), torch.tensor(IDS)
    with model.trace(input_ids=ids, blocking=False, **where):
        found = model.lm_head.output.save()
        _ = found


def test_a_request_larger_than_redis_takes_is_a_server_error_and_the_next_one_runs(plain_server: Server) -> None:
    import torch

    model, ids = text_model(), torch.tensor(IDS)
    ballast = torch.randint(2**31 - 1, (LARGEST_REQUEST // 4 + 2**20,), dtype=torch.int32)
    with refused("Failed to send request: Internal server error."), model.trace(input_ids=ids, remote=True):
        size = ballast.numel()
        found = model.lm_head.output[0, 0, size % 1].save()
        _ = found
    assert logits(model, remote=True).shape == (2, 5, 165)


def test_a_request_of_a_few_mebibytes_and_a_result_too_large_for_redis_arrive(plain_server: Server) -> None:
    import torch

    model, ids = text_model(), torch.tensor(IDS)
    ballast = torch.randint(2**31 - 1, (3 * 2**20,), dtype=torch.int32)  # 12 MiB; up to 8 MiB go through redis
    with model.trace(input_ids=ids, remote=True):
        back = (ballast + 1).save()
        found = model.lm_head.output.save()
        _ = found
    assert back.equal(ballast + 1)


def test_a_client_that_waits_for_a_job_loses_the_connection_when_the_api_dies(
    plain_server: Server, tmp_path: Path
) -> None:
    from websocket import WebSocketConnectionClosedException

    model, gate, seen = text_model(), Gate(tmp_path / "gate"), []

    def wait() -> None:
        try:
            gated_logits(model, gate)
        except Exception as error:
            seen.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: gate.is_reached or seen, "the job to start")
    assert seen == []
    plain_server.kill_api()
    gate.open()
    waiting.join(DEADLINE)
    with pytest.raises(ConnectionRefusedError):
        logits(model, remote=True)
    plain_server.start_api()
    (error,) = seen
    assert isinstance(error, WebSocketConnectionClosedException | ConnectionResetError)
    assert logits(model, remote=True).shape == (2, 5, 165)


def test_when_the_api_dies_the_running_job_is_collected_later_and_a_queued_one_is_lost_and_stays_queued(
    plain_server: Server, tmp_path: Path
) -> None:
    model, gates = text_model(), [Gate(tmp_path / name) for name in ("running", "queued")]
    running = gated_logits(model, gates[0], blocking=False)
    wait_until_running(running)
    queued = gated_logits(model, gates[1], blocking=False)
    wait_until(lambda: state(queued) == "QUEUED", "the second job to be queued")
    plain_server.kill_api()
    for gate in gates:
        gate.open()  # the running job ends while there is no API
    plain_server.start_api()
    expected = logits(text_model(dispatch=True))
    assert collect(running)["found"].equal(expected)
    assert logits(model, remote=True).equal(expected)  # the next job runs, and the queued one was not before it
    assert not gates[1].is_reached
    assert queued.poll() is None
    assert queued.status.value == "QUEUED"
