"""Running servers for these tests: one without and one with a sandbox, each started once for all of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ndif import keys
from tests.ndif.jobs import BASE
from tests.ndif.server import Server, why_not

TRUSTED, KNOWN = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))  # API keys
ONLY_PLAIN = {"plain_server", "server_with_keys"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder asks for a server, and is skipped where none can run."""
    reason = why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ndif)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `server` runs on both servers; pytest runs all tests of one before it starts the other."""
    if "running_server" in metafunc.fixturenames:
        kinds = ["plain"] if ONLY_PLAIN & set(metafunc.fixturenames) else ["plain", "sandboxed"]
        metafunc.parametrize("running_server", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def running_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that accepts everybody, to which nnsight points."""
    import nnsight
    from nnsight import CONFIG

    nnsight.register("tests.ndif.jobs")  # its functions are sent with the jobs that call them
    with Server(models=[BASE], sandbox=request.param == "sandboxed") as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CONFIG.API, "HOST", server.url)
        patch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
        yield server


@pytest.fixture
def server(running_server: Server) -> Server:
    """A server without, and one with a sandbox; its API runs, whatever the test before left behind."""
    running_server.ensure_api()
    return running_server


@pytest.fixture
def plain_server(server: Server) -> Server:
    """The server without a sandbox."""
    return server


@pytest.fixture(scope="module")
def server_with_keys(running_server: Server) -> Iterator[Server]:
    """The plain server with another API, which accepts the keys `TRUSTED` and `KNOWN` and no others."""
    if keys.binary("postgres") is None:
        pytest.skip("there is no PostgreSQL on this machine, where ndif would read API keys from")
    running_server.start_keys({TRUSTED: ["trusted"], KNOWN: []})
    running_server.restart_api(with_keys=True)
    yield running_server
    running_server.restart_api()
