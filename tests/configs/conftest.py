import pytest

from codi_tracing.configs.load import load_config
from codi_tracing.configs.schema import RunConfig

RUN = 'name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\n'


@pytest.fixture
def load(tmp_path):
    """Write a config's text into a file and load it."""

    def load(text, kind=RunConfig, **instead):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, kind, **instead)

    return load
