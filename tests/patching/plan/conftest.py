"""A model, checkpoint folders and the command that are planned with."""

import pytest
from typer.testing import CliRunner

from codi_tracing.cli.main import app
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint
from tests.support.planning import SHIPPED


@pytest.fixture(scope="session")
def shipped():
    """The shipped checkpoint, which no test may change."""
    return load_codi(SHIPPED, device="cpu")


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """A random checkpoint of each family."""
    return write_random_checkpoint(tmp_path_factory.mktemp("plan"), family=request.param)


@pytest.fixture
def codi_plan(tmp_path, monkeypatch):
    """`codi plan` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["plan", *map(str, words)])
