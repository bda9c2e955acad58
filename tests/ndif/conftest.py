"""A running server for these tests, and clients of it that hold no weights."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ndif import keys
from tests.ndif.server import Server, why_not

EMBEDDED = Path(__file__).parents[2] / "traces" / "embedded"
BASE = str(EMBEDDED / "base")
ADAPTER = str(EMBEDDED / "thought" / "adapter")
TRUSTED, KNOWN = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))  # API keys


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder asks for a server, and is skipped where none can run."""
    reason = why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ndif)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def serve(**options) -> Iterator[Server]:
    """Start a server and point nnsight at it."""
    from nnsight import CONFIG

    with Server(models=[BASE], **options) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CONFIG.API, "HOST", server.url)
        patch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
        yield server


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sandboxed"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that accepts everybody, without and with a sandbox."""
    yield from serve(sandbox=request.param)


@pytest.fixture(scope="module")
def plain_server() -> Iterator[Server]:
    yield from serve()


@pytest.fixture(scope="module")
def server_with_keys() -> Iterator[Server]:
    """A server that accepts the API keys `TRUSTED` and `KNOWN`, and nobody else."""
    if keys.binary("postgres") is None:
        pytest.skip("there is no PostgreSQL on this machine, where ndif would read API keys from")
    yield from serve(keys={TRUSTED: ["trusted"], KNOWN: []})


def text_model(repo: str = BASE, **options):
    """The base under nnsight: without weights, or with them where `dispatch=True`."""
    import torch
    from nnsight import TransformersModel
    from nnsight.modeling import huggingface
    from transformers import AutoTokenizer

    huggingface._ID_CACHE[repo] = repo  # else nnsight asks the Hub how a folder's name is spelled
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return TransformersModel(BASE, task="text-generation", tokenizer=tokenizer, dtype=torch.float32, **options)
