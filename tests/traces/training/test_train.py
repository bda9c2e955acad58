"""Training: the student's loop in plain PyTorch equals the traced loop, and the recipe has its effects."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from codi_tracing.configs.train_schema import TrainConfig
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import answer_ids
from codi_tracing.traces.model import checkpoint
from codi_tracing.traces.model.checkpoint import CheckpointError, read_card
from codi_tracing.traces.model.loading import load_codi, open_base
from codi_tracing.traces.training import train as training
from codi_tracing.traces.training.batches import BatchSampler
from codi_tracing.traces.training.distillation import Thinker, merged_weights
from codi_tracing.traces.training.train import DivergedError, schedule, train
from codi_tracing.traces.training.word_problems import build_tokenizer
from tests.support.tokenizers import write_base
from tests.support.upstream import random_base


def recipe(folder, base="base", lr=1e-3, steps=3, batch=8, **changes) -> TrainConfig:
    """A short training over a base in this folder."""
    optimiser = {"steps": steps, "batch": batch, "lr": lr}
    codi = {"rank": 4, "prj_dim": 16}
    return TrainConfig(out=folder / "codi", base=folder / base, optimiser=optimiser, codi=codi, **changes)


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


def test_over_a_base_whose_numbers_are_several_tokens_a_batch_of_32_trains_and_the_checkpoint_loads(
    multi_token, tmp_path
):
    write_base(tmp_path / "base", multi_token)
    reports = []
    train(recipe(tmp_path, lr=1e-2, steps=4, batch=32), lambda *a: reports.append(a))
    first, last = (figures["loss"] for _, figures in reports)
    assert last < first
    model = load_codi(tmp_path / "codi", device="cpu")
    assert torch.isfinite(record(model, ["Ann had 7 coins. How many coins does Ann have now?"]).logits).all()


def test_a_training_leaves_the_random_state_and_the_threads_of_its_caller(tmp_path):
    write_base(tmp_path / "base", build_tokenizer())
    threads = torch.get_num_threads()
    torch.manual_seed(11)
    random.seed(11)
    states = torch.get_rng_state(), random.getstate()
    during = []
    train(recipe(tmp_path, seed=5, threads=threads + 1), lambda *_: during.append(torch.get_num_threads()))
    assert set(during) == {threads + 1}
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_a_base_of_another_family_is_refused(tmp_path):
    write_base(tmp_path / "base", build_tokenizer(), family="gpt2")
    with pytest.raises(ValueError, match="base: is a base of family 'gpt2'; only 'llama' can be trained"):
        train(recipe(tmp_path), lambda *_: None)


def test_a_checkpoint_of_another_base_is_no_start(trained, tmp_path):
    write_base(tmp_path / "base", build_tokenizer())
    optimiser = {"steps": 1, "batch": 2, "lr": 1e-3}
    for start, sentence in ((trained[0] / "codi", "it belongs to another base"), (tmp_path / "none", "no such file")):
        config = TrainConfig(out=tmp_path / "a", base=tmp_path / "base", optimiser=optimiser, codi={"start": start})
        with pytest.raises(CheckpointError, match=rf"{start.name}.*{sentence}"):
            train(config, lambda *_: None)


def test_a_base_in_bfloat16_is_trained_in_float32(tmp_path):
    tokenizer = build_tokenizer()
    random_base("llama", len(tokenizer)).bfloat16().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    train(recipe(tmp_path), lambda *_: None)
    assert load_codi(tmp_path / "codi", device="cpu").bot.dtype == torch.float32


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    write_base(tmp_path / "base", tokenizer)
    with pytest.raises(ValueError, match="its tokenizer has no EOS, at which answers end; set eos_token"):
        train(recipe(tmp_path), lambda *_: None)


def test_a_training_that_diverges_stops_and_leaves_the_earlier_checkpoint(tmp_path):
    write_base(tmp_path / "base", build_tokenizer())
    train(recipe(tmp_path), lambda *_: None)
    files = {path: path.read_bytes() for path in (tmp_path / "codi").rglob("*") if path.is_file()}
    with pytest.raises(DivergedError, match=r"^step \d+: the loss is .*; lower optimiser.lr, which is 1e\+30$"):
        train(recipe(tmp_path, lr=1e30, steps=8), lambda *_: None, fresh=True)
    assert {path: path.read_bytes() for path in (tmp_path / "codi").rglob("*") if path.is_file()} == files


def test_nothing_drops_out_of_a_model_in_training(tmp_path):
    write_base(tmp_path / "base", build_tokenizer())
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    losses = []
    for dropout in (0.0, 0.9):
        path.write_text(json.dumps({**config, "attention_dropout": dropout}), encoding="utf-8")
        train(recipe(tmp_path), lambda _, figures: losses.append(figures["loss"]), fresh=True)
    assert losses[:2] == losses[2:]


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(tmp_path):
    write_base(tmp_path / "base", build_tokenizer())
    (tmp_path / "codi").write_text("a file")
    reports = []
    with pytest.raises(FileExistsError):
        train(recipe(tmp_path), lambda *a: reports.append(a))
    assert reports == []


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["base", "codi"])
def test_what_was_trained_before_is_replaced_only_when_asked(trained, tmp_path, what):
    folder = shutil.copytree(trained[0] / what, tmp_path / what)
    (folder / "notes.md").write_text("mine")
    before = contents(folder)
    steps, shape = {"steps": 1, "batch": 2, "lr": 1e-3}, {"d_model": 32, "d_mlp": 32, "layers": 1}
    config = (
        TrainConfig(out=folder, optimiser=steps, architecture=shape)
        if what == "base"
        else TrainConfig(out=folder, base=trained[0] / "base", optimiser=steps, codi={"rank": 2, "prj_dim": 16})
    )
    with pytest.raises(ValueError, match="holds a trained model .*; --fresh replaces it, or choose another --out"):
        train(config, lambda *_: None)
    assert contents(folder) == before
    train(config, lambda *_: None, fresh=True)
    after = contents(folder)
    assert after.keys() == before.keys()
    assert after[Path("notes.md")] == b"mine"
    assert after != before


@pytest.mark.parametrize("what", ["base", "codi"])
def test_a_training_killed_while_it_saves_leaves_no_checkpoint_that_loads(trained, tmp_path, what, monkeypatch):
    """Every call that writes is the last one in turn; what then stands there is whole or no checkpoint."""
    steps, shape = {"steps": 1, "batch": 2, "lr": 1e-3}, {"d_model": 32, "d_mlp": 32, "layers": 1}
    calls = {"left": 10**6}

    def counted(function):
        def call(*args, **options):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(checkpoint, "save_file", counted(checkpoint.save_file))
    for left in range(12):
        out = tmp_path / str(left)
        config = (
            TrainConfig(out=out, optimiser=steps, architecture=shape)
            if what == "base"
            else TrainConfig(out=out, base=trained[0] / "base", optimiser=steps, codi={"rank": 2, "prj_dim": 16})
        )
        train(config, lambda *_: None)
        whole, calls["left"] = contents(out), left
        try:
            train(config.model_copy(update={"seed": 1}), lambda *_: None, fresh=True)
        except KeyboardInterrupt:
            marker = out / ("codi.json" if what == "codi" else "config.json")
            assert not marker.exists() or contents(out) == whole
            if not marker.exists():
                with pytest.raises(CheckpointError):
                    load_codi(out, device="cpu") if what == "codi" else open_base("the base", str(out))
        else:
            break
        finally:
            calls["left"] = 10**6
    else:
        pytest.fail("every training was killed")
    assert left > 3


def test_a_checkpoint_says_how_many_steps_were_made(tmp_path, monkeypatch):
    write_base(tmp_path / "base", build_tokenizer())
    made = []
    monkeypatch.setattr(training, "write_checkpoint", lambda *parts: made.append(parts[-1].provenance["steps_made"]))
    monkeypatch.setattr(training, "codi_loss", lambda thinker, *_: (thinker.project[1].weight.sum(), {}))
    train(recipe(tmp_path, steps=1003, batch=1), lambda *_: None)
    assert made == [501, 1001, 1003]
