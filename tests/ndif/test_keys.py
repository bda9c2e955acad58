"""API keys: a known key is served, and each kind of wrong key has its own answer before the job is taken."""

from __future__ import annotations

import uuid

import pytest

from tests.ndif.conftest import KNOWN, TRUSTED
from tests.ndif.jobs import logits, refused, text_model
from tests.ndif.server import Server
from tests.support.places import EMBEDDED


def use(patch: pytest.MonkeyPatch, key: str | None) -> None:
    from nnsight import CONFIG

    patch.setattr(CONFIG.API, "APIKEY", key)


@pytest.mark.parametrize("key", [TRUSTED, KNOWN])
def test_a_known_key_is_served(server_with_keys: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    use(monkeypatch, key)
    assert logits(text_model(), remote=True).equal(logits(text_model(dispatch=True)))


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        (None, "Failed to send request: Missing or invalid API key"),
        ("secret", "Failed to send request: Invalid API key format: 'secret'"),
        (str(uuid.UUID(int=3)), "Failed to send request: Invalid API key.$"),
    ],
    ids=["missing", "malformed", "unknown"],
)
def test_any_other_key_is_refused(
    server_with_keys: Server, monkeypatch: pytest.MonkeyPatch, key: str | None, answer: str
) -> None:
    use(monkeypatch, key)
    with refused(answer):
        logits(text_model(), remote=True)


def test_the_server_names_the_owner_of_a_key(server_with_keys: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight import ndif

    use(monkeypatch, TRUSTED)
    assert ndif.whoami() == {"email": "someone@example.org", "tags": ["trusted"]}
    use(monkeypatch, str(uuid.UUID(int=3)))
    assert ndif.whoami() == {"email": None, "tags": []}


def test_the_list_of_served_models_needs_no_key(server_with_keys: Server) -> None:
    import nnsight

    assert [model["state"] for model in nnsight.status().deployments.values()] == ["RUNNING"]


def test_our_client_takes_its_key_from_the_environment_and_never_prints_a_wrong_one(
    server_with_keys: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codi_tracing.traces.loop.recording import record
    from codi_tracing.traces.model.loading import load_codi
    from codi_tracing.traces.remote.ndif import DeploymentError

    model = load_codi(EMBEDDED / "thought", remote=server_with_keys.url)
    question = ["On Sunday Ann had 7 pens. On Monday Ann bought 5 pens. How many pens does Ann have now?"]
    monkeypatch.setenv("NDIF_API_KEY", TRUSTED)
    assert record(model, question).answers
    monkeypatch.setenv("NDIF_API_KEY", "secret-of-mine")
    with pytest.raises(DeploymentError, match="set NDIF_API_KEY to a key of this deployment") as refusal:
        record(model, question)
    assert "secret-of-mine" not in str(refusal.value)
