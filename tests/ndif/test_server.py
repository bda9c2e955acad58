"""A client without weights gets from a real server the values that it would have computed itself."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError

from tests.ndif.jobs import (
    ADAPTER,
    BASE,
    IDS,
    Gate,
    collect,
    gated_logits,
    logits,
    text_model,
    wait_at,
    wait_until_running,
)
from tests.ndif.server import Server, model_key


def think(model, steps: int, **where):
    """A thought in the loop's form: a session of one trace a forward, with a latent and the cache handed on."""
    import nnsight
    import torch

    torch.manual_seed(0)
    begin, project = torch.randn(64), torch.nn.Linear(64, 64).requires_grad_(False)
    ids, answer = torch.tensor(IDS), torch.tensor(IDS)[:, :2]
    ones, positions = torch.ones(2, 16, dtype=torch.long), torch.arange(16).expand(2, 16)
    with model.session(**where):
        with model.trace(input_ids=ids, attention_mask=ones[:, :5], position_ids=positions[:, :5], use_cache=True):
            model.model.embed_tokens.output[:, -1] = begin
            latent = project(model.model.norm.output[:, -1:])
            cache = model.output.past_key_values
        residuals = nnsight.save([])
        for at in range(5, 5 + steps):
            with model.trace(
                inputs_embeds=latent, past_key_values=cache, use_cache=True,
                attention_mask=ones[:, : at + 1], position_ids=positions[:, at : at + 1],
            ):  # fmt: skip
                residuals.append(model.model.layers[1].output[:, 0].clone())
                latent = project(model.model.norm.output)
                # A sandbox holds a copy of the cache, to which the model adds nothing: take the new one.
                cache = model.output.past_key_values
        at = 5 + steps
        with model.trace(
            input_ids=answer, past_key_values=cache,
            attention_mask=ones[:, : at + 2], position_ids=positions[:, at : at + 2],
        ):  # fmt: skip
            found = model.lm_head.output.save()
    return found.detach(), torch.stack(list(residuals)).detach()


def test_a_remote_trace_of_the_base_is_the_local_one_and_its_states_are_noted(server: Server) -> None:
    states = []

    class Noting(RemoteBackend):
        def note(self, response) -> bool:
            states.append(response.status.value)
            return super().note(response)

    model = text_model()
    remote = logits(model, backend=Noting(model.to_model_key(), env=model._remoteable_get_env()))
    assert remote.equal(logits(text_model(dispatch=True)))
    assert (states[0], states[-1]) == ("RECEIVED", "COMPLETED")
    assert {"DISPATCHED", "RUNNING"} < set(states)


def test_a_remote_trace_has_the_adapter_that_its_request_names_and_the_client_holds_no_weights(server: Server) -> None:
    model = text_model(peft=ADAPTER)
    adapted, local = logits(model, remote=True), text_model(peft=ADAPTER, dispatch=True)
    assert adapted.equal(logits(local))
    assert (adapted - logits(text_model(dispatch=True))).abs().max() > 1
    assert not model.dispatched
    assert {parameter.device.type for parameter in model._module.parameters()} == {"meta"}


def test_a_remote_thought_hands_latents_and_cache_from_trace_to_trace(server: Server) -> None:
    remote, residuals = think(text_model(peft=ADAPTER), 6, remote=True)
    local, expected = think(text_model(peft=ADAPTER, dispatch=True), 6)
    assert remote.equal(local)
    assert residuals.equal(expected)


def slope(model, **where):
    """The gradient of the logits' sum by the second block's output."""
    import torch

    ids = torch.tensor(IDS)
    with model.trace(input_ids=ids, **where):
        hidden = model.model.layers[1].output
        hidden.requires_grad_(True)
        total = model.lm_head.output.sum()
        with total.backward():
            found = hidden.grad.save()
    return found


def test_gradients_come_from_a_plain_server_and_a_sandbox_has_none(server: Server) -> None:
    if server.sandbox:  # values that cross into the sandbox have lost the graph that made them
        with pytest.raises(RemoteError, match=r"OutOfOrderError: '\d+\.grad\.i0' was requested"):
            slope(text_model(), remote=True)
    else:
        assert slope(text_model(), remote=True).equal(slope(text_model(dispatch=True)))


def test_functions_of_ours_travel_once_they_are_registered(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nnsight
    import torch

    logits(text_model(), remote=True)  # at its first request nnsight looks for local modules, and not again
    name = f"ours_{server.sandbox}"
    (tmp_path / f"{name}.py").write_text("def double(logits):\n    return logits * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    ours = importlib.import_module(name)

    def doubled():
        model, ids = text_model(), torch.tensor(IDS)
        with model.trace(input_ids=ids, remote=True):
            found = ours.double(model.lm_head.output).save()
        return found

    with pytest.raises(RemoteError, match=f"could not be read .ModuleNotFoundError: No module named '{name}'"):
        doubled()
    nnsight.register(ours)
    assert doubled().equal(2 * logits(text_model(dispatch=True)))


def test_the_server_knows_the_base_by_the_key_that_the_client_asks_for(server: Server) -> None:
    assert text_model().to_model_key() == model_key(BASE)
    assert server.is_running(model_key(BASE))


def test_the_server_has_the_versions_of_the_client(server: Server) -> None:
    import nnsight

    compared = nnsight.compare()
    assert compared.python_matches
    assert compared.critical_mismatches == {}


def test_a_session_that_does_not_block_is_polled_until_its_result_is_there(server: Server, tmp_path: Path) -> None:
    import torch

    model, ids, gate = text_model(), torch.tensor(IDS), Gate(tmp_path / "gate")
    folder = gate.folder
    with model.session(remote=True, blocking=False) as job:
        wait_at(folder)
        with model.trace(input_ids=ids):
            found = model.lm_head.output.save()
        _ = found
    wait_until_running(job.backend)
    gate.open()
    assert collect(job.backend)["found"].equal(logits(text_model(dispatch=True)))


def test_another_process_collects_a_job_by_its_id(server: Server, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    job = gated_logits(text_model(), gate, blocking=False)
    wait_until_running(job)
    gate.open()
    collect(job)
    script = (
        "from nnsight.intervention.backends.remote import RemoteBackend as Job\n"
        f"print(Job('', host={server.url!r}, blocking=False, job_id={job.job_id!r}).poll()['found'].shape)"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert other.stdout.endswith("torch.Size([2, 5, 165])\n"), other.stderr


def test_an_id_that_no_job_has_is_never_answered(server: Server) -> None:
    job = RemoteBackend("", host=server.url, blocking=False, job_id="0" * 32)
    assert job.poll() is None
    assert job.status is None
