"""The shipped model that answers through its thought, and the shipped pairs."""

import pytest

from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.traces.model.loading import load_codi
from tests.support.places import ROOT


@pytest.fixture(scope="package")
def thought():
    return load_codi(ROOT / "traces" / "embedded" / "thought", device="cpu")


@pytest.fixture(scope="package")
def shipped():
    return load_pairs("arithmetic")
