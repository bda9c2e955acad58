"""Training: the student's loop in plain PyTorch equals the traced loop, and the recipe has its effects."""

import pytest
import torch

from codi_tracing.configs.train_schema import TrainConfig
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import answer_ids
from codi_tracing.traces.model.checkpoint import read_card
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.training.batches import BatchSampler
from codi_tracing.traces.training.distillation import Thinker, merged_weights
from codi_tracing.traces.training.train import schedule, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base and a CODI model, three optimiser steps each."""
    folder, reports = tmp_path_factory.mktemp("trained"), []
    steps = {"steps": 3, "batch": 8, "lr": 1e-3}
    shape = {"d_model": 32, "d_mlp": 32, "layers": 2, "terse": 0.5}
    train(TrainConfig(out=folder / "base", optimiser=steps, architecture=shape), lambda *a: reports.append(a))
    codi = {"rank": 4, "prj_dim": 32, "hide_question": 0.5, "decode_weight": 1.0}
    config = TrainConfig(out=folder / "codi", base=folder / "base", optimiser=steps, codi=codi)
    train(config, lambda *a: reports.append(a))
    return folder, reports


def test_a_trained_checkpoint_loads_and_declares_its_recipe(trained):
    folder, reports = trained
    card = read_card(folder / "codi")
    assert card.base == "../base"
    assert card.provenance["codi"]["hide_question"] == 0.5
    assert load_codi(folder / "codi", device="cpu").n_layers == 2
    assert {"loss", "student", "teacher", "distill", "decode"} <= set().union(*(figures for _, figures in reports))


def test_training_continues_from_a_checkpoint_and_records_its_recipe(trained):
    folder, _ = trained
    optimiser = {"steps": 1, "batch": 4, "lr": 1e-9}
    config = TrainConfig(
        out=folder / "more", base=folder / "base", optimiser=optimiser, codi={"start": folder / "codi"}
    )
    train(config, lambda *_: None)
    before, after = (load_codi(folder / name, device="cpu") for name in ("codi", "more"))
    torch.testing.assert_close(after.bot, before.bot)
    torch.testing.assert_close(after.project[1].weight, before.project[1].weight, atol=1e-6, rtol=0)
    assert after.card.provenance["continued_from"] == before.card.provenance


@torch.no_grad()
def test_the_students_loop_equals_the_traced_loop(trained, problems):
    model = load_codi(trained[0] / "codi", device="cpu")
    batch = BatchSampler(model.tokenizer, model.n_latents, seed=0).encode(problems)
    decoder = model.lm._module.model
    thinker = Thinker(decoder, merged_weights(decoder), model.project, model.bot, model.eot, model.n_latents)
    cache, mask, last, _ = thinker.think(batch.question, batch.question_mask)
    for module in decoder.modules():  # the adapter is in the merged weights already
        if hasattr(module, "lora_A"):
            module.enable_adapters(False)
    cache, mask, last, _ = thinker.think(batch.question, batch.question_mask)
    out = thinker.answer(batch.answer, cache, mask, last, torch.zeros(len(problems), dtype=torch.bool))
    at_colon = model.lm._module.lm_head(out.last_hidden_state[:, len(answer_ids(model))])
    for module in decoder.modules():
        if hasattr(module, "lora_A"):
            module.enable_adapters(True)
    torch.testing.assert_close(at_colon, record(model, [p.question for p in problems]).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_hiding_the_question_changes_the_answers_of_the_hidden_rows_alone(trained, problems):
    model = load_codi(trained[0] / "codi", device="cpu")
    batch = BatchSampler(model.tokenizer, model.n_latents, seed=0).encode(problems)
    decoder = model.lm._module.model
    thinker = Thinker(decoder, {}, model.project, model.bot, model.eot, model.n_latents)

    def answered(hidden):
        cache, mask, last, _ = thinker.think(batch.question, batch.question_mask)
        return thinker.answer(batch.answer, cache, mask, last, torch.tensor(hidden)).last_hidden_state

    shown, first_hidden = answered([False] * 6), answered([True] + [False] * 5)
    torch.testing.assert_close(shown[1:], first_hidden[1:], atol=1e-5, rtol=0)
    assert (shown[0] - first_hidden[0]).abs().max() > 1e-4


def test_the_learning_rate_warms_up_and_decays():
    rates = [schedule(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
    assert rates[100:] == sorted(rates[100:], reverse=True)
