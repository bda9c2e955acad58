"""On a real server, without and with its sandbox, this project computes the values that it computes here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

from codi_tracing.configs.schema import Remote, RunConfig
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.edges import edge
from codi_tracing.patching.interventions.sites import BOT, QUESTION, THOUGHT, Site, headwise, sitewise, stepwise
from codi_tracing.patching.interventions.sources import mean, other, unrelated, zero
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.pairs.validity import split_usable
from codi_tracing.patching.runs.experiment import run_experiment
from codi_tracing.patching.runs.ndif_check import preflight
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.lens import attention_of, logit_lens
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.remote.ndif import DeploymentError
from tests.ndif.server import Server
from tests.support.command_line import codi
from tests.support.places import EMBEDDED, ROOT
from tests.support.waiting import wait_until

PAIRS = ROOT / "patching" / "data" / "arithmetic_pairs.json"
EXACT = 1e-5


@pytest.fixture(scope="module")
def pairs():
    return load_pairs(PAIRS)


@pytest.fixture(scope="module")
def here():
    """The shipped model `thought` with its weights and the server's attention."""
    model = load_codi(EMBEDDED / "thought", device="cpu")
    model.lm._module.set_attn_implementation("sdpa")
    return model


def there(server: Server, **options):
    """The same model without weights, on the server."""
    return load_codi(EMBEDDED / "thought", remote=Remote(host=server.url, **options))


def alike(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal up to rounding, relative to the largest number."""
    torch.testing.assert_close(a, b, atol=EXACT * max(1.0, float(a.abs().max())), rtol=0)


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Equal up to rounding, metric by metric."""
    for metric, part in a.groupby("metric", sort=False):
        rounding = EXACT * max(1.0, float(part["patched"].abs().max()))
        pd.testing.assert_frame_equal(part, b[b["metric"] == metric], atol=rounding, rtol=0)
    assert len(a) == len(b)


def test_recording_the_lens_attention_and_answers_equal_the_local_ones(server: Server, here, pairs) -> None:
    questions = [pair.clean.question for pair in pairs[:3]]
    remote = there(server)
    for a, b in zip(record(here, questions)[:3], record(remote, questions)[:3], strict=True):
        alike(a, b)
    values = [[pair.clean.answer] for pair in pairs[:3]]
    expected, lens = logit_lens(here, questions, values), logit_lens(remote, questions, values)
    assert (expected.tokens[..., 0] == lens.tokens[..., 0]).float().mean() > 0.99  # ties may fall otherwise
    alike(expected.probabilities, lens.probabilities)
    alike(expected.entropy, lens.entropy)
    assert (expected.ranks == lens.ranks).float().mean() > 0.99
    alike(attention_of(here, questions).weights, attention_of(remote, questions).weights)
    assert answers(here, questions) == answers(remote, questions)


@pytest.mark.parametrize(
    ("sites", "options"),
    [
        (lambda m: [*sitewise(m), *headwise(m, 1)[:2], *sitewise(m, "kv")[:4], *sitewise(m, "attn")[:2],
                    *sitewise(m, "mlp")[:2], Site("latent", step=2, step_last=2), THOUGHT, QUESTION, BOT],
         {"sources": [other, unrelated], "metrics": ["logit_difference", "answer", "logprob_clean", "edit_norm"]}),
        (stepwise, {"sources": [zero, mean], "metrics": ["kl_to_clean", "prediction_change"]}),
        (stepwise, {"sources": [other], "freeze": ["R", "K_T"], "metrics": ["logit_difference"]}),
        (lambda m: [THOUGHT], {"knockouts": [edge("answer-question"), edge("4-1")], "metrics": ["logit_difference"]}),
        (None, {"sources": [other], "protocol": "single_pass", "metrics": ["kl_from_corrupted_at_eot"]}),
    ],
    ids=["sites", "values", "routes", "knockouts", "single_pass"],
)  # fmt: skip
def test_a_sweep_equals_the_local_one_at_every_site_source_route_and_knockout(
    server: Server, here, pairs, sites, options
) -> None:
    chosen = None if sites is None else sites(here)
    same(
        sweep(here, pairs[:4], chosen, pool=pairs, pairs_per_batch=2, **options),
        sweep(there(server, jobs=2, cells_per_job=128), pairs[:4], chosen, pool=pairs, pairs_per_batch=2, **options),
    )


def config_of(server: Server | None, pairs_per_batch: int = 3, **options) -> RunConfig:
    remote = None if server is None else Remote(host=server.url, **options)
    return RunConfig(
        name="ours", checkpoint=EMBEDDED / "thought", pairs={"file": PAIRS, "limit": 12}, merge_lora=False,
        device="cpu", pairs_per_batch=pairs_per_batch, remote=remote,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pd.DataFrame:
    """The layer-wise experiment on twelve pairs, as this machine runs it."""
    out = run_experiment(config_of(None), tmp_path_factory.mktemp("here") / "run", progress=False)
    return pd.read_parquet(out / "cells.parquet")


def test_the_whole_experiment_equals_the_local_one(server: Server, whole, tmp_path: Path) -> None:
    pairs_per_batch = 6 if server.sandbox else 3  # a sandbox starts Python anew for every job, and a batch is a job
    out = run_experiment(config_of(server, pairs_per_batch), tmp_path / "run", progress=False)
    same(whole, pd.read_parquet(out / "cells.parquet"))


def test_the_preflight_passes_on_this_server(server: Server, pairs) -> None:
    usable, _ = split_usable(pairs)
    found = {check.name: check for check in preflight(EMBEDDED / "thought", Remote(host=server.url), usable)}
    assert list(found) == ["host", "versions", "model", "job", "adapter", "weights", "self_patch"]
    assert not [check for check in found.values() if check.passed is False]
    assert found["weights"].value < 1e-3


def test_the_preflight_notices_another_models_adapter(plain_server: Server, pairs) -> None:
    usable, _ = split_usable(pairs)
    place = Remote(host=plain_server.url, adapter=str(EMBEDDED / "bypass" / "adapter"))
    found = {check.name: check for check in preflight(EMBEDDED / "thought", place, usable)}
    assert found["adapter"].passed
    assert not found["weights"].passed


def test_a_model_loaded_here_can_run_there_too(plain_server: Server, pairs) -> None:
    model = load_codi(EMBEDDED / "thought", device="cpu")
    options = {"sites": stepwise(model)[:2], "metrics": ["logit_difference"], "pool": pairs}
    same(sweep(model, pairs[:2], **options), sweep(model, pairs[:2], remote=plain_server.url, **options))


def test_a_server_killed_in_mid_sweep_costs_the_jobs_in_flight_and_the_run_resumes(
    plain_server: Server, whole, tmp_path: Path
) -> None:
    out, finished_when_killed = tmp_path / "run", []

    def kill_once_a_batch_is_saved() -> None:
        wait_until(lambda: saved_batches(out), "the first saved batch", every=0.01)
        plain_server.kill_api()
        finished_when_killed.append((out / "cells.parquet").exists())
        plain_server.start_api()

    killer = threading.Thread(target=kill_once_a_batch_is_saved)
    killer.start()
    run_experiment(config_of(plain_server, retries=9), out, progress=False)
    killer.join()
    assert finished_when_killed == [False]
    same(whole, pd.read_parquet(out / "cells.parquet"))


def saved_batches(out: Path) -> list[str]:
    """The names of a run's batch files."""
    return [path.name for path in (out / "batches").glob("00-*.parquet")]


def test_a_run_that_gave_up_is_resumed_by_the_same_command(plain_server: Server, whole, tmp_path: Path) -> None:
    from codi_tracing.patching.runs import batch_files

    out, saved = tmp_path / "run", []
    write = batch_files.write_batch

    def write_and_kill(*arguments) -> Path:
        path = write(*arguments)
        if not saved:
            saved.append(saved_batches(out))
            plain_server.kill_api()
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_files, "write_batch", write_and_kill)
        with pytest.raises(DeploymentError, match="run it again to resume|the connection is refused"):
            run_experiment(config_of(plain_server, retries=0, jobs=1), out, progress=False)
    plain_server.start_api()
    (before,) = saved
    assert len(before) == 1
    run_experiment(config_of(plain_server, retries=0, jobs=1), out, progress=False)
    same(whole, pd.read_parquet(out / "cells.parquet"))


@pytest.fixture
def written(plain_server: Server, tmp_path: Path) -> Path:
    """A config for the server, as a user writes it."""
    path = tmp_path / "ours.toml"
    path.write_text(
        f'name = "ours"\ncheckpoint = "{EMBEDDED / "thought"}"\nmerge_lora = false\npairs_per_batch = 3\n'
        f'pairs = {{ file = "{PAIRS}", limit = 12 }}\nremote = {{ host = "{plain_server.url}" }}\n'
    )
    return path


def test_jobs_are_submitted_now_and_collected_later_and_lost_ones_again(
    plain_server: Server, written: Path, whole, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    sent = codi("remote", "submit", written, "--out", out)
    assert sent.exit_code == 0, sent.output
    assert "jobs are not finished" in sent.output
    assert not (out / "cells.parquet").exists()
    jobs = json.loads((out / "jobs.json").read_text())
    lost = next(iter(jobs))
    (out / "jobs.json").write_text(json.dumps({**jobs, lost: ["0" * 32, 0.0]}))  # an id that is never answered
    assert "1 lost" in codi("remote", "collect", written, "--out", out).output
    assert lost not in json.loads((out / "jobs.json").read_text())
    assert codi("remote", "submit", written, "--out", out).exit_code == 0

    def collected() -> bool:
        answer = codi("remote", "collect", written, "--out", out)
        assert answer.exit_code == 0, answer.output
        return "Report:" in answer.output

    wait_until(collected, "the results of all jobs", every=2.0)
    same(whole, pd.read_parquet(out / "cells.parquet"))


def test_the_command_line_runs_a_config_on_the_server_that_the_environment_names(
    plain_server: Server, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "codi_tracing", "run", "configs/tiny.toml", "--limit", "4", "--remote", "--out"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NDIF")}
    done = subprocess.run(
        [*command, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True,
        env={**environment, "NDIF_HOST": plain_server.url},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Undecided, because of the answered pairs with a control (n = 4)" in done.stdout
    checked = codi("remote", "check", ROOT / "configs" / "tiny.toml")
    assert checked.exit_code == 0, checked.output
    assert "self_patch" in checked.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"host": "http://127.0.0.1:9"}, "the connection is refused; is a deployment running there?"),
        ({"host": "https://nobody.invalid"}, "this address is unknown; check remote.host"),
    ],
)
def test_an_address_without_a_server_ends_a_run_before_it_begins(
    plain_server: Server, tmp_path: Path, options, sentence
):
    config = config_of(plain_server).model_copy(update={"remote": Remote(**options)})
    with pytest.raises(DeploymentError, match=sentence):
        run_experiment(config, tmp_path / "run", progress=False)


def test_a_base_that_the_server_cannot_load_is_named(plain_server: Server, pairs) -> None:
    from nnsight.modeling import huggingface

    model = there(plain_server)
    model.lm.repo_id = huggingface._ID_CACHE["/nowhere/base"] = "/nowhere/base"
    with pytest.raises(DeploymentError, match="name a base that it can load in remote.base"):
        record(model, [pairs[0].clean.question])


def test_a_request_too_large_to_arrive_is_refused_here(plain_server: Server, pairs, monkeypatch) -> None:
    from codi_tracing.traces.remote import jobs

    monkeypatch.setattr(jobs, "LARGEST_REQUEST", 1000)
    with pytest.raises(DeploymentError, match="use fewer pairs_per_batch, or remote.cells_per_job"):
        record(there(plain_server), [pairs[0].clean.question])


def test_gradients_are_refused_before_anything_is_sent(plain_server: Server, pairs) -> None:
    from codi_tracing.patching.engine.attribution import attribute

    model = there(plain_server)
    with pytest.raises(ValueError, match="load the model here"):
        attribute(model, tokenize_pairs(model, pairs[:1])[0], ["resid"], ["denoising"])
