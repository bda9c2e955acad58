"""Fixtures made once a session: small random CODI checkpoints, pairs, a finished run and its report."""

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder of a random model of three layers."""
    from tests.support.checkpoints import write_random_checkpoint

    return write_random_checkpoint(tmp_path_factory.mktemp("random_codi"))


@pytest.fixture(scope="session")
def model(random_checkpoint):
    """A random CODI model of three layers."""
    from codi_tracing.traces.model.loading import load_codi

    return load_codi(random_checkpoint, device="cpu")


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def both(request, tmp_path_factory):
    """A random model of each family."""
    from codi_tracing.traces.model.loading import load_codi
    from tests.support.checkpoints import write_random_checkpoint

    folder = write_random_checkpoint(tmp_path_factory.mktemp("both"), family=request.param)
    return load_codi(folder, device="cpu")


@pytest.fixture(scope="session")
def problems():
    """Word problems of different lengths."""
    from codi_tracing.traces.training.word_problems import draw_problems

    return draw_problems(seed=5, count=6)


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """Twelve clean/corrupted pairs, three of each of four templates, as `codi pairs arithmetic` writes them."""
    import random

    from codi_tracing.analysis.io.atomic import write_json
    from codi_tracing.patching.pair_making.arithmetic import as_records, draw_pair

    rng, records = random.Random(2), []
    for pair_id in range(12):
        records += as_records(pair_id, *draw_pair(rng))
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    write_json(path, records)
    return path


@pytest.fixture(scope="session")
def pairs(pairs_file):
    from codi_tracing.patching.pairs.pair import load_pairs

    return load_pairs(pairs_file)


@pytest.fixture(scope="session")
def run_config(random_checkpoint, pairs_file):
    """The layer-wise experiment on six pairs of the random model."""
    from codi_tracing.configs.schema import RunConfig

    return RunConfig(name="test", checkpoint=random_checkpoint, pairs={"file": pairs_file, "limit": 6}, device="cpu")


@pytest.fixture(scope="session")
def finished_run(run_config, tmp_path_factory) -> Path:
    """The folder of that experiment's run, without a report; a test that changes it copies it first."""
    from codi_tracing.patching.runs.experiment import run_experiment

    return run_experiment(run_config, tmp_path_factory.mktemp("finished") / "test", progress=False)


@pytest.fixture(scope="session")
def finished_report(finished_run, tmp_path_factory) -> Path:
    """The folder of the same run with its report and all figures; likewise."""
    from codi_tracing.analysis.report.write import write_report

    folder = shutil.copytree(finished_run, tmp_path_factory.mktemp("reported") / "test")
    write_report(folder)
    return folder
