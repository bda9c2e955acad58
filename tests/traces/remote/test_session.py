"""Results do not depend on where a session runs: every path, serialised as for a deployment."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from nnsight import register
from nnsight.intervention.serialization import dumps

from codi_tracing.configs.schema import Remote, RunConfig
from codi_tracing.patching.engine.attribution import attribute
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.edges import edge
from codi_tracing.patching.interventions.sites import THOUGHT, Site, sitewise, stepwise
from codi_tracing.patching.interventions.sources import mean, other, unrelated, zero
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.runs.experiment import run_experiment
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.lens import ask, attention_of, logit_lens
from codi_tracing.traces.loop import thought
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.remote.ndif import DeploymentError
from codi_tracing.traces.remote.session import PACKAGE, deployment_of, in_evaluation_mode, start
from codi_tracing.traces.remote.submitted_jobs import Ledger
from tests.support.places import ROOT

EXACT = 1e-5
WITHOUT_THE_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "codi_tracing":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import nnsight, torch
from nnsight.intervention.serialization import loads
from nnsight.modeling.transformers import TransformersModel

base, adapter, sent, out = sys.argv[1:]
lm = TransformersModel(base, task="text-generation", peft=adapter, dtype=torch.float32, device_map="cpu", dispatch=True)
results = []
for blob in torch.load(sent):
    body = loads(blob, lm._remoteable_persistent_objects())
    with torch.no_grad(), lm.session():
        value = nnsight.save(body())
    results.append(value)
torch.save(results, out)
"""
THERE = "http://127.0.0.1:9"  # no server listens there


@pytest.fixture(scope="module")
def dry(random_checkpoint):
    """The random model; every session is serialised first."""
    return load_codi(random_checkpoint, device="cpu", remote="local")


def test_recording_the_lens_attention_and_answers_are_the_same_serialised(model, dry, problems):
    questions = [problem.question for problem in problems[:2]]
    for here, there in zip(record(model, questions)[:3], record(dry, questions)[:3], strict=True):
        torch.testing.assert_close(here, there, atol=EXACT, rtol=EXACT)
    values = [[float(problem.answer)] for problem in problems[:2]]
    for here, there in zip(
        logit_lens(model, questions, values)[:5], logit_lens(dry, questions, values)[:5], strict=True
    ):
        torch.testing.assert_close(here, there, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(attention_of(model, questions).weights, attention_of(dry, questions).weights)
    assert answers(model, questions, batch_size=1) == answers(dry, questions, batch_size=1)
    assert ask(model, questions[0]) == ask(dry, questions[0])


def test_a_users_edit_travels_with_the_values_that_it_writes(model, dry, problems):
    vector = torch.randn(model.d_model)

    def write(block, layer, step):
        if (layer, step) == (1, 2):
            block.output[:, 0] = vector

    here, there = (record(one, [problems[0].question], edits=[write]) for one in (model, dry))
    assert (here.resid[0, 1, 2] == vector).all()
    torch.testing.assert_close(here.logits, there.logits, atol=EXACT, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"sites": "sitewise", "sources": [other, unrelated], "metrics": ["logit_difference", "answer"]},
        {"sites": "stepwise", "sources": [unrelated], "metrics": ["logprob_clean", "logprob_corrupted"]},
        {"sites": "stepwise", "sources": [zero, mean], "metrics": ["kl_to_clean", "edit_norm"]},
        {"sites": "stepwise", "sources": [other], "freeze": ["K_T", "R"], "metrics": ["logit_difference"]},
        {"sites": "stepwise", "sources": [other], "step_metrics": ["projection"], "metrics": ["entropy"]},
        {
            "sites": "thought",
            "sources": [other],
            "knockouts": [edge("answer-question")],
            "metrics": ["logit_difference"],
        },
        {"sites": "layers", "sources": [other], "protocol": "single_pass", "metrics": ["kl_from_corrupted_at_eot"]},
    ],
    ids=["sites", "branches", "values", "routes", "steps", "knockouts", "single_pass"],
)
def test_a_sweep_is_the_same_serialised(model, dry, pairs, options):
    sites = {"sitewise": sitewise(model), "stepwise": stepwise(model), "thought": [THOUGHT], "layers": None}
    run = {**options, "sites": sites[options["sites"]]}
    here, there = (sweep(one, pairs[:2], pool=pairs[:6], **run) for one in (model, dry))
    pd.testing.assert_frame_equal(here, there, atol=EXACT)


def test_an_experiment_is_the_same_serialised(tmp_path, random_checkpoint, pairs_file):
    config = RunConfig(
        name="dry", checkpoint=random_checkpoint, pairs={"file": pairs_file, "limit": 3}, merge_lora=False,
        device="cpu", metrics=("logit_difference",), memory=1.0,
    )  # fmt: skip
    tables = {
        where: pd.read_parquet(run_experiment(one, tmp_path / where, progress=False) / "cells.parquet")
        for where, one in (("here", config), ("dry", config.model_copy(update={"remote": Remote(host="local")})))
    }
    pd.testing.assert_frame_equal(tables["here"], tables["dry"], atol=EXACT)


def test_a_sweep_runs_in_a_process_that_lacks_this_package(random_checkpoint, pairs, tmp_path, monkeypatch):
    model, blobs, here = load_codi(random_checkpoint, device="cpu"), [], []
    model.lm._module.set_attn_implementation("sdpa")  # a deployment's

    def start_and_record(model, body, **options):
        blobs.append(dumps(partial(in_evaluation_mode, model, body)))  # as for a deployment
        started = start(model, body)
        here.append(started.result())
        return started

    register(PACKAGE)
    monkeypatch.setattr(thought, "start", start_and_record)
    options = {"metrics": ["logit_difference", "logprob_clean", "answer"], "step_metrics": ["projection"]}
    sweep(model, pairs[:1], sitewise(model), [other], freeze=["K_A"], **options)
    torch.save(blobs, tmp_path / "sent.pt")
    base, adapter = (str(random_checkpoint / name) for name in ("base", "adapter"))
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, base, adapter, tmp_path / "sent.pt", tmp_path / "results.pt"]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    there = torch.load(tmp_path / "results.pt")
    assert len(there) == len(here) > 0
    torch.testing.assert_close(there, here, atol=EXACT, rtol=EXACT)


def test_a_model_on_a_deployment_has_no_weights_here_and_sends_no_path_of_this_machine():
    model = load_codi(ROOT / "traces" / "embedded" / "thought", remote=THERE)
    assert {parameter.device.type for parameter in model.lm._module.parameters()} == {"meta"}
    assert (model.n_layers, model.n_latents, model.device.type, model.group) == (4, 6, "cpu", 1)
    assert model.deployment == Remote(host=THERE)
    assert model.describe()["lora_modules"] is None
    sent = pickle.loads(pickle.dumps(replace(model, lm=None, tokenizer=None, ledger=Ledger(Path("x"), sending=False))))
    assert (sent.folder.parts, sent.deployment, sent.ledger) == (("thought",), None, None)


def test_the_deployment_is_set_by_the_model_or_by_the_call(model, dry):
    assert deployment_of(model, None) is None
    assert deployment_of(dry, None) == Remote(host="local")
    assert deployment_of(dry, False) is None
    assert deployment_of(model, True) == Remote()
    assert deployment_of(model, THERE) == Remote(host=THERE)


def test_gradients_are_refused_on_a_deployment_before_a_job_is_sent(model, pairs):
    with pytest.raises(ValueError, match="a deployment's sandbox computes no gradients; load the model here"):
        attribute(model, tokenize_pairs(model, pairs[:1])[0], ["resid"], ["denoising"], remote=THERE)


def test_an_edge_of_one_layer_is_refused_on_a_deployment_and_cut_serialised(model, dry, pairs):
    options = {"sites": [THOUGHT], "knockouts": [edge("4-1@2")], "metrics": ["logit_difference"]}
    with pytest.raises(ValueError, match=r"the edge 4-1@2 is cut in one layer alone.*\(4-1\), or load the model here"):
        sweep(model, pairs[:1], remote=THERE, **options)
    pd.testing.assert_frame_equal(sweep(model, pairs[:1], **options), sweep(dry, pairs[:1], **options), atol=EXACT)


def test_an_unreachable_deployment_fails_at_once(model, pairs):
    with pytest.raises(DeploymentError, match=f"{THERE}: the connection is refused; is a deployment running there?"):
        sweep(model, pairs[:1], [Site("resid", 0, 0)], [other], metrics=["logit_difference"], remote=THERE)
