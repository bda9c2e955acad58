"""A checkpoint loads completely and in a state that is decided here, whatever its files say; or it is refused."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import question_ids, texts
from codi_tracing.traces.model.checkpoint import TENSORS, CheckpointError
from codi_tracing.traces.model.loading import load_codi, pick_device, reinitialise
from tests.support.checkpoints import write_random_checkpoint

QUESTION = "On Sunday Ann had 7 books. Ann found 5 books on Monday. How many books does Ann have now?"


@pytest.fixture
def folder(random_checkpoint, tmp_path):
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="device 'warp' cannot be used here"):
        pick_device("warp")


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="dtype 'int8' is unknown; use auto, float32"):
        load_codi(folder, dtype="int8")


def test_a_base_with_its_own_code_is_refused_without_asking_at_the_keyboard(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the keyboard"))
    own_code = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    edit_json(folder / "base" / "config.json", **own_code)
    with pytest.raises(CheckpointError, match="custom code"):
        load_codi(folder, device="cpu")


def test_loaded_values_equal_the_stored_ones(folder):
    model, stored = load_codi(folder, device="cpu"), load_file(folder / TENSORS)
    torch.testing.assert_close(model.bot, stored["bot"])
    torch.testing.assert_close(model.project[4].bias, stored["prj.ln.bias"])
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    torch.testing.assert_close(model.lm._module.model.layers[1].self_attn.q_proj.lora_B["default"].weight, adapter[key])


# Evaluation mode.


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_trained_with_dropout_runs_without_it(family, tmp_path):
    folder = write_random_checkpoint(tmp_path / "codi", family=family)
    edit_json(folder / "adapter" / "adapter_config.json", lora_dropout=0.5)
    dropouts = {"attention_dropout": 0.5} if family == "llama" else {"attn_pdrop": 0.5, "resid_pdrop": 0.5}
    edit_json(folder / "base" / "config.json", **dropouts)
    model = load_codi(folder, device="cpu")
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.5 for m in model.lm._module.modules())
    for one in (model, reinitialise(model)):
        assert not [name for name, module in one.lm._module.named_modules() if module.training]
        assert not [name for name, module in one.project.named_modules() if module.training]
    first, second = (record(model, [QUESTION] * 2) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.resid, second.resid)
    torch.testing.assert_close(first.logits[0], first.logits[1])  # two rows of a batch draw different dropout masks


def test_a_session_runs_in_evaluation_mode_whatever_was_set_before(folder):
    model = load_codi(folder, device="cpu")
    before = record(model, [QUESTION]).logits
    model.lm._module.train()
    assert torch.equal(record(model, [QUESTION]).logits, before)


# What libraries would decide silently.


def test_loading_leaves_all_random_states_as_they_were(folder):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    model = load_codi(folder, device="cpu")
    reinitialise(model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False}, {"return_dict": False}, {"output_hidden_states": True},
        {"attn_implementation": "eager"}, {"_attn_implementation": "eager"}, {"dtype": "bfloat16"},
        {"torch_dtype": "float16"}, {"sliding_window": 400}, {"pretraining_tp": 1, "eos_token_id": [3, 5, 7]},
        {"pad_token_id": None, "bos_token_id": None},
    ],
)  # fmt: skip
def test_a_bases_config_cannot_change_a_result_silently(folder, model, options):
    edit_json(folder / "base" / "config.json", **options)
    (folder / "base" / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 9.0, "max_length": 3, "eos_token_id": [5]})
    )
    ours, theirs = (record(one, [QUESTION, QUESTION[:30]]) for one in (load_codi(folder, device="cpu"), model))
    assert torch.equal(ours.logits, theirs.logits)
    assert ours.answers == theirs.answers


@pytest.mark.parametrize("option", [{"output_attentions": True}, {"_attn_implementation": "flash_attention_2"}])
def test_what_a_bases_config_asks_for_and_this_machine_cannot_do_is_refused(folder, option):
    edit_json(folder / "base" / "config.json", **option)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_codi(folder, device="cpu")


def test_a_window_as_long_as_a_run_changes_nothing_however_many_runs_share_a_forward(folder, model):
    needed = len(question_ids(model, QUESTION)) + 1 + model.n_latents + 1 + 12
    edit_json(folder / "base" / "config.json", sliding_window=needed + 8)
    windowed = load_codi(folder, device="cpu")
    assert windowed.n_positions == needed + 8
    assert torch.equal(record(windowed, [QUESTION] * 3).logits, record(model, [QUESTION] * 3).logits)
    with pytest.raises(ValueError, match=f"the model has {needed + 8}; leave it out"):
        answers(windowed, [QUESTION * 3])


@pytest.mark.parametrize("window", ["sliding_window", "max_position_embeddings"])
def test_a_base_that_reads_fewer_positions_than_a_thought_is_refused(folder, window):
    edit_json(folder / "base" / "config.json", **{window: 9})
    with pytest.raises(CheckpointError, match="its base reads 9 positions, a run needs 10"):
        load_codi(folder, device="cpu")


# The tokenizer.


def test_a_tokenizer_with_truncation_and_padding_switched_on_reads_whole_questions(folder, model):
    path = folder / "base" / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<pad>"}  # fmt: skip
    edit_json(path, truncation=truncation, padding=padding)
    edit_json(folder / "base" / "tokenizer_config.json", model_max_length=5, truncation=True, max_length=5)
    assert question_ids(load_codi(folder, device="cpu"), QUESTION) == question_ids(model, QUESTION)


def test_bos_stands_once_before_a_question_that_begins_with_it(model):
    assert question_ids(model, f"<bos> {QUESTION}") == question_ids(model, QUESTION)
    assert question_ids(model, QUESTION)[:2].count(model.tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_adds_eos_adds_none_to_a_question(folder, model):
    special = {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in (("<bos>", 2), ("<eos>", 3))}
    bos, eos = ({"SpecialToken": {"id": token, "type_id": 0}} for token in special)
    single = [bos, {"Sequence": {"id": "A", "type_id": 0}}, eos]
    processor = {"type": "TemplateProcessing", "pair": [], "special_tokens": special, "single": single}
    edit_json(folder / "base" / "tokenizer.json", post_processor=processor)
    ours = load_codi(folder, device="cpu")
    assert ours.tokenizer("7")["input_ids"][-1] == ours.tokenizer.eos_token_id
    assert question_ids(ours, QUESTION) == question_ids(model, QUESTION)
    own = f"{QUESTION} <eos>"  # a user's own is kept
    assert question_ids(ours, own) == question_ids(model, own) != question_ids(model, QUESTION)


def test_a_tokenizer_without_eos_is_refused(folder):
    config = folder / "base" / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "eos_token"}))
    (folder / "base" / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="its tokenizer has no EOS, at which answers end; set eos_token"):
        load_codi(folder, device="cpu")


def test_a_tokenizer_of_another_base_is_refused(folder):
    path = folder / "base" / "tokenizer.json"
    stored = json.loads(path.read_text())
    rows = len(stored["model"]["vocab"])
    stored["model"]["vocab"] |= {"zebra": rows, "zebras": rows + 1}
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=f"2 tokens of its tokenizer lie beyond its embedding of {rows} rows"):
        load_codi(folder, device="cpu")


def test_a_token_for_padding_beyond_the_embedding_is_never_fed(folder, model):
    path = folder / "base"
    tokenizer = load_codi(folder, device="cpu").tokenizer
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # as upstream's training adds it
    tokenizer.save_pretrained(path)
    ours = load_codi(folder, device="cpu")
    assert ours.tokenizer.pad_token_id == ours.tokenizer.eos_token_id
    assert record(ours, [QUESTION, QUESTION[:30]]).answers == record(model, [QUESTION, QUESTION[:30]]).answers


def test_an_answer_ends_at_eos_alone(model):
    eos = model.tokenizer.eos_token_id
    words = model.tokenizer("7 5", add_special_tokens=False)["input_ids"]
    assert texts(model, torch.tensor([[[*words, eos, words[0]]]])) == [["7 5"]]
