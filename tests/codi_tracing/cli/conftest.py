"""Fixtures of the command line's tests: each runs in an empty folder."""

import pytest
from typer.testing import CliRunner

from codi_tracing.cli.main import app


@pytest.fixture
def codi(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def config(tmp_path):
    def write(text='name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\n'):
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        return "config.toml"

    return write
