"""Upstream's checkpoints load exactly, on both families, or are refused in a sentence."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from codi_tracing.cli.main import app
from codi_tracing.traces.convert.convert import convert
from codi_tracing.traces.convert.upstream import BASE_PREFIX, ConversionError
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import answer_ids, encode, question_ids
from codi_tracing.traces.model.checkpoint import CARD, CheckpointError, read_card
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.training.word_problems import draw_problems
from tests.support.upstream import random_base, save_upstream, write_upstream

ROOT = Path(__file__).parents[3]
QUESTIONS = [problem.question for problem in draw_problems(seed=3, count=4)]
TEXTS = [*(problem.question for problem in draw_problems(seed=4, count=200)), *["The answer is: 18"] * 20]
EVERY = [(family, tied) for family in ("llama", "gpt2") for tied in (True, False)]


@pytest.fixture(scope="module", params=EVERY, ids=lambda p: f"{p[0]}-{'tied' if p[1] else 'untied'}")
def upstream(request, tmp_path_factory):
    """A random model in upstream's layout: its folder, the reference and its tokenizer."""
    family, tied = request.param
    folder = tmp_path_factory.mktemp("upstream")
    codi, tokenizer = write_upstream(folder, family, TEXTS, tied=tied)
    return folder, codi, tokenizer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    return folder, *write_upstream(folder, "gpt2", TEXTS)


@pytest.fixture
def state(gpt2):
    return dict(gpt2[1].state_dict())


def refused(state, gpt2, tmp_path, **options):
    """The refusal of a changed state dict."""
    save_upstream(state, tmp_path / "codi")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", **{"alpha": 16} | options)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    return error.value


@pytest.mark.parametrize("remove_eos", [True, False])
def test_every_answer_logit_equals_upstreams_loop_on_each_question_alone(upstream, remove_eos, tmp_path):
    folder, codi, tokenizer = upstream
    convert(folder / "codi", folder / "base", tmp_path / "out", alpha=16, remove_eos=remove_eos)
    model = load_codi(tmp_path / "out", device="cpu")
    eos = None if remove_eos else tokenizer.eos_token_id
    answer = answer_ids(model, " 18")
    for batch in ([QUESTIONS[0]], QUESTIONS):  # alone, and padded on the left
        rows = encode(model, [[question] for question in batch])
        assert (len(batch) == 1) == bool(rows.valid.all())
        for length in range(len(answer) + 1):
            forced = torch.tensor([answer[:length]] * len(batch), dtype=torch.long)
            got = run(model, rows, forced).forced.at_read[:, 0]
            for question, logits in zip(batch, got, strict=True):
                expected = codi.answer_logits(tokenizer(question)["input_ids"], answer, eos=eos)[length]
                torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("remove_eos", [True, False])
@pytest.mark.parametrize("n_latents", [0, 6])
def test_greedy_answers_equal_upstreams_alone_and_in_a_padded_batch(upstream, remove_eos, n_latents, tmp_path):
    folder, codi, tokenizer = upstream
    convert(folder / "codi", folder / "base", tmp_path / "out", alpha=16, remove_eos=remove_eos)
    model = load_codi(tmp_path / "out", device="cpu")
    eos = None if remove_eos else tokenizer.eos_token_id
    stop = tokenizer.eos_token_id
    for batch in ([QUESTIONS[1]], QUESTIONS):
        forced = torch.zeros(len(batch), 0, dtype=torch.long)
        rows = encode(model, [[question] for question in batch])
        tokens = run(model, rows, forced, max_new_tokens=12, n_latents=n_latents).tokens
        for question, said in zip(batch, tokens[:, 0].tolist(), strict=True):
            said = said[: said.index(stop) + 1] if stop in said else said
            assert said == codi.answer(tokenizer(question)["input_ids"], stop, n_latents, eos)


def test_without_remove_eos_eos_ends_the_question_and_follows_the_thought(upstream, tmp_path):
    folder, _, tokenizer = upstream
    convert(folder / "codi", folder / "base", tmp_path / "out", alpha=16, remove_eos=False)
    model = load_codi(tmp_path / "out", device="cpu")
    assert question_ids(model, QUESTIONS[0])[-1] == tokenizer.eos_token_id


def test_the_report_accounts_for_every_tensor(upstream, tmp_path):
    folder, codi, _ = upstream
    report = convert(folder / "codi", folder / "base", tmp_path / "out", alpha=16)
    assert all(part.expected == part.landed and part.missing == part.unexpected == 0 for part in report)
    *parts, special = report
    assert special.expected == 3
    tied = int(codi.codi.get_base_model().config.tie_word_embeddings)  # the LM head is named, but is no tensor more
    assert sum(part.expected for part in parts) == len(codi.state_dict()) - tied


def test_the_card_says_where_the_checkpoint_came_from(upstream, tmp_path):
    folder, _, _ = upstream
    convert(folder / "codi", folder / "base", tmp_path / "out", alpha=16, n_latents=4)
    card = read_card(tmp_path / "out")
    assert (card.n_latents, card.dtype, card.provenance["alpha"], card.provenance["alpha_from"]) == (
        4, "float32", 16, "--alpha",
    )  # fmt: skip
    assert len(card.provenance["sha256"]) == 64
    assert (tmp_path / "out" / card.base).resolve() == (folder / "base").resolve()


def test_rank_and_targets_are_read_off_the_tensors(upstream, tmp_path):
    folder, codi, _ = upstream
    convert(folder / "codi", folder / "base", tmp_path / "out", alpha=16)
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert set(config["target_modules"]) == set(codi.codi.peft_config["default"].target_modules)


def test_fewer_adapted_modules_are_a_lora_too(state, gpt2, tmp_path):
    kept = {n.replace("c_fc.base_layer", "c_fc"): t for n, t in state.items() if "c_fc.lora" not in n}
    save_upstream(kept, tmp_path / "codi")
    convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)
    assert load_codi(tmp_path / "out", device="cpu").loaded.landed == 2 * 3  # c_attn and both c_proj of two layers


def test_safetensors_with_tied_weights_stored_once_is_read_the_same(tmp_path):
    for name in ("bin", "safetensors"):
        write_upstream(tmp_path / name, "llama", TEXTS, safetensors=name == "safetensors")
        convert(tmp_path / name / "codi", tmp_path / name / "base", tmp_path / name / "out", alpha=16)
    one, two = (load_file(tmp_path / name / "out" / "codi.safetensors") for name in ("bin", "safetensors"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_an_output_in_shards_is_the_same_as_a_whole_one(state, gpt2, ending, tmp_path):
    state.pop(f"{BASE_PREFIX}lm_head.weight")
    save_upstream(state, tmp_path / "whole", safetensors=ending == "safetensors")
    stem, names = {"bin": "pytorch_model", "safetensors": "model"}[ending], sorted(state)
    halves = {f"{stem}-0000{i + 1}-of-00002.{ending}": names[i::2] for i in (0, 1)}
    for file, half in halves.items():
        save_upstream({name: state[name] for name in half}, tmp_path / "codi", safetensors=ending == "safetensors")
        (tmp_path / "codi" / f"{stem}.{ending}").rename(tmp_path / "codi" / file)
    index = tmp_path / "codi" / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, half in halves.items() for name in half}}))
    for source, out in ((tmp_path / "whole", "a"), (tmp_path / "codi", "b"), (index, "c")):
        convert(source, gpt2[0] / "base", tmp_path / out, alpha=16)
    for file in ("codi.safetensors", "adapter/adapter_model.safetensors"):
        one, *others = (load_file(tmp_path / out / file) for out in "abc")
        assert all(set(one) == set(other) and all(torch.equal(one[n], other[n]) for n in one) for other in others)
    next((tmp_path / "codi").glob(f"*-00002.{ending}")).unlink()
    with pytest.raises(CheckpointError, match=f"its file {stem}-0000"):
        convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "d", alpha=16)


def test_a_tied_head_stored_in_the_embeddings_place_is_the_embedding(state, gpt2, tmp_path):
    del state[f"{BASE_PREFIX}transformer.wte.weight"]
    save_upstream(state, tmp_path / "codi")
    assert convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)[-1].landed == 3


def test_old_gpt2_mask_buffers_are_no_weights(state, gpt2, tmp_path):
    state[f"{BASE_PREFIX}transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
    save_upstream(state, tmp_path / "codi")
    assert convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)


def test_weights_in_bfloat16_stay_so(state, gpt2, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    save_upstream(half, tmp_path / "codi")
    convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)  # the base, rounded, is the same
    assert read_card(tmp_path / "out").dtype == "bfloat16"
    assert str(load_codi(tmp_path / "out", device="cpu").dtype) == "torch.bfloat16"


def test_alpha_is_read_from_a_config_beside_the_weights(state, gpt2, tmp_path):
    save_upstream(state, tmp_path / "codi")
    (tmp_path / "codi" / "adapter_config.json").write_text('{"lora_alpha": 16}')
    convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out")
    assert read_card(tmp_path / "out").provenance["alpha_from"] == "adapter_config.json"


def test_a_base_with_other_weights_is_refused_or_kept(state, gpt2, tmp_path):
    name = f"{BASE_PREFIX}transformer.h.1.mlp.c_fc.base_layer.weight"
    state[name] = state[name] + 1e-3
    error = refused(state, gpt2, tmp_path)
    assert "1 of 28 base tensors differ" in str(error)
    assert "the first is transformer.h.1.mlp.c_fc.weight" in str(error)
    assert "--keep-base" in str(error)

    broken = {**state, name: state[name] * torch.nan}
    assert "its own transformer.h.1.mlp.c_fc.weight holds NaN" in str(refused(broken, gpt2, tmp_path, keep_base=True))
    save_upstream(state, tmp_path / "codi")
    convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16, keep_base=True)
    kept = load_codi(tmp_path / "out", device="cpu")
    assert kept.card.base == "base"
    assert torch.equal(kept.lm._module.transformer.h[1].mlp.c_fc.base_layer.weight, state[name])
    assert kept.embedding._module.weight.shape[0] == len(kept.tokenizer)  # the special rows are vectors, not tokens


def drop(part):
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


def add(name):
    return lambda state: {**state, f"{BASE_PREFIX}{name}": torch.zeros(2, 2)}


def change(part, function):
    return lambda state: {name: function(tensor) if part in name else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (drop("prj."), "has no projection (prj.1, prj.3, prj.ln); give a model trained with use_prj"),
        (drop("prj.3.bias"), "1 missing, the first is prj.3.bias"),
        (drop("lora_"), "adapts none of c_attn, c_proj, c_fc"),
        (drop("h.1.attn.c_attn.lora_B"), "1 missing, the first is codi.base_model.model.transformer.h.1"),
        (add("transformer.h.0.mlp.c_fc.lora_magnitude_vector.default.weight"), "holds a DoRA (codi.base_model"),
        (add("lm_head.modules_to_save.default.weight"), "holds modules that were trained whole (codi.base_model.mod"),
        (add("transformer.wte.lora_embedding_A.default"), "holds an adapted embedding (codi.base_model.model.tra"),
        (add("lm_head.lora_A.default.weight"), "holds an adapted LM head (codi.base_model.model.lm_head.lora_A"),
        (add("transformer.h.0.mlp.c_fc.lora_B.default.bias"), "holds biases of a LoRA (codi.base_model.model.tra"),
        (drop("ln_f.weight"), "1 missing, the first is codi.base_model.model.transformer.ln_f.weight"),
        (drop("codi."), "is no CODI state dict: none of its 6 tensors is under 'codi.base_model.model.'"),
        (lambda state: {}, "is no CODI state dict: none of its 0 tensors"),
        (lambda state: {**state, "optimizer": torch.zeros(2)}, "1 unexpected, the first is optimizer"),
        (change("wte", lambda t: t[:-3]), "has 400 rows, expected 403: the rows of pad, BoT and EoT are missing"),
        (change("wte", lambda t: t[:-9]), "embedding has 394 rows, expected 403; it was trained over another base"),
        (change("c_fc.lora_A", lambda t: t[:4]), "lora_A.default.weight has shape [4, 32], expected [8, 32]"),
        (change("prj.ln.weight", lambda t: t[:4]), "prj.ln.weight has shape [4], expected [32]"),
        (change("lm_head", lambda t: t + 1), "its LM head differs from its embedding"),
        (change("prj.1.weight", lambda t: t[0, 0]), "prj.1.weight is float32 of shape [], torch.strided on cpu"),
        (change("lora_A", lambda t: t[:0]), "float32 of shape [0, 32], torch.strided on cpu; expected plain float32"),
        (change("", lambda t: t.to(torch.int8)), "is int8 of shape"),
        (change("wte", lambda t: t.double()), "is float64 of shape"),
        (change("prj.3.weight", lambda t: t.to_sparse()), "torch.sparse_coo on cpu"),
        (change("prj.3.weight", lambda t: t.to("meta")), "on meta; expected plain"),
        (change("prj.3.weight", lambda t: t * torch.nan), "prj.3.weight holds NaN or infinity"),
        (change("h.1.mlp.c_fc.lora_B", lambda t: t / 0), "c_fc.lora_B.default.weight holds NaN or infinity"),
        (lambda state: {**state, f"{BASE_PREFIX}transformer.h.7.attn.bias": torch.zeros(1, 1, 2, 2)}, "1 unexpected, "),
    ],
)  # fmt: skip
def test_a_state_dict_that_does_not_fit_is_refused_in_a_sentence(edit, sentence, state, gpt2, tmp_path):
    edited = edit(state)
    if not sentence.startswith("its LM"):  # a tied head goes with the embedding
        edited.pop(f"{BASE_PREFIX}lm_head.weight", None)
    assert sentence in str(refused(edited, gpt2, tmp_path))


def test_a_refusal_carries_the_report(state, gpt2, tmp_path):
    error = refused(drop("prj.3")(state) | {"prj.5.weight": torch.zeros(1)}, gpt2, tmp_path)
    assert isinstance(error, ConversionError)
    projection = next(part for part in error.report if part.part == "projection")
    assert projection == ("projection", 6, 4, 2, 1)


def test_a_base_of_another_size_or_family_is_refused(state, gpt2, tmp_path):
    vocabulary = len(gpt2[2])
    deeper = random_base("gpt2", vocabulary, layers=3)
    llama = random_base("llama", vocabulary)
    for base, sentence in ((deeper, "20 missing, the first is"), (llama, "adapts none of q_proj")):
        folder = tmp_path / type(base).__name__
        base.save_pretrained(folder)
        gpt2[2].save_pretrained(folder)
        save_upstream(state, tmp_path / "codi")
        with pytest.raises(ConversionError, match=sentence):
            convert(tmp_path / "codi", folder, tmp_path / "out", alpha=16)


def test_what_a_killed_conversion_left_is_deleted_once_it_is_old(state, gpt2, tmp_path):
    save_upstream(state, tmp_path / "codi")
    left = tmp_path / ".out.tmp"
    left.mkdir()
    (left / "half").write_text("x")
    with pytest.raises(
        CheckpointError, match="another process is writing out, or one was killed; wait for it, or delete"
    ):
        convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)
    os.utime(left, (0, 0))
    convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codi", "out"]
    assert not (tmp_path / "out" / "half").exists()


def test_alpha_is_never_guessed(state, gpt2, tmp_path):
    assert "no config beside the weights gives LoRA's alpha" in str(refused(state, gpt2, tmp_path, alpha=None))
    beside = tmp_path / "codi" / "config.json"
    for text, sentence in (
        ('{"lora_alpha": 32}', "about LoRA's alpha, --alpha says 16 and config.json says 32; settle on one"),
        ('{"lora_alpha": 1e999}', "'lora_alpha' is inf, expected a number above 0"),
        (f'{{"lora_alpha": 1{"0" * 400}}}', "'lora_alpha' is 1000000000000000000"),
        ('{"lora_alpha": 16, "r": 99}', "its LoRA has rank 8, config.json beside it says 99"),
        ('{"rank_pattern": {"c_fc": 4}}', "'rank_pattern' is {'c_fc': 4}, expected plain LoRA"),
        ('{"lora_alpha": "x"}', "'lora_alpha' is x, expected a number above 0"),
        ('{"lora_alpha": 16, "use_rslora": true}', "'use_rslora' is True, expected plain LoRA"),
        ("{", "config.json: cannot be read"),
    ):
        beside.write_text(text)
        assert sentence in str(refused(state, gpt2, tmp_path))


class Bomb:
    """An object whose unpickling runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_in_it_is_refused_and_never_run(gpt2, tmp_path):
    (tmp_path / "codi").mkdir()
    torch.save({"codi.x": Bomb(str(tmp_path / "ran"))}, tmp_path / "codi" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused, because it is damaged or holds Python objects"):
        convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_a_damaged_file_is_one_sentence(name, content, gpt2, state, tmp_path):
    save_upstream(state, tmp_path / "codi", safetensors=name.startswith("model"))
    path = tmp_path / "codi" / name
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(CheckpointError, match=r"cannot be read|refused, because it is damaged"):
        convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)


def test_a_missing_source_is_one_sentence(gpt2, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, sentence in (
        (tmp_path / "empty", "holds neither model.safetensors nor pytorch_model.bin"),
        (tmp_path / "nothing", "no such file or folder"),
        ("someone/not-cached", "fetch it once while online: hf download someone/not-cached"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            convert(source, gpt2[0] / "base", tmp_path / "out", alpha=16)
    with pytest.raises(CheckpointError, match="hf download someone/no-base"):
        convert(gpt2[0] / "codi", "someone/no-base", tmp_path / "out", alpha=16)


@pytest.mark.parametrize("edit", [{"n_embd": "x"}, {"n_head": 0}, {"n_embd": -4}, {"model_type": ["gpt2"]}])
def test_a_base_with_an_invalid_config_is_one_sentence(gpt2, tmp_path, edit):
    shutil.copytree(gpt2[0] / "base", tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(CheckpointError, match="base cannot be loaded"):
        convert(gpt2[0] / "codi", tmp_path / "base", tmp_path / "out", alpha=16)


def test_the_current_folder_is_not_replaced(gpt2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is the current folder, which cannot be replaced"):
        convert(gpt2[0] / "codi", gpt2[0] / "base", Path("."), alpha=16)


def test_a_truncated_record_is_refused(gpt2, state, tmp_path):
    save_upstream(state, tmp_path / "codi")
    path = tmp_path / "codi" / "pytorch_model.bin"
    with zipfile.ZipFile(path) as whole:
        records = {entry: whole.read(entry) for entry in whole.namelist()}
    truncated = next(name for name in records if name.endswith("data/3"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as short:
        for name, content in records.items():
            short.writestr(name, content[:4] if name == truncated else content)
    with pytest.raises(CheckpointError, match=r"bytes of tensors, expected \d+; restore|cannot be read"):
        convert(tmp_path / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)


def test_an_existing_folder_is_never_overwritten(gpt2, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(CheckpointError, match="exists already; choose another folder with --out"):
        convert(gpt2[0] / "codi", gpt2[0] / "base", tmp_path / "out", alpha=16)


def test_a_moved_base_is_named_in_the_refusal(gpt2, tmp_path):
    shutil.copytree(gpt2[0] / "base", tmp_path / "base")
    convert(gpt2[0] / "codi", tmp_path / "base", tmp_path / "out", alpha=16)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=f"{CARD}: its base '../base' is not a folder next to it"):
        load_codi(tmp_path / "out", device="cpu")


@pytest.fixture
def codi(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_prints_the_report_and_the_checkpoint_can_be_asked(codi, gpt2):
    said = codi("convert", gpt2[0] / "codi", "--base", gpt2[0] / "base", "--out", "made/out", "--alpha", 16)
    assert said.exit_code == 0, said.output
    assert said.stdout.splitlines()[:5] == [
        "tensors       expected  landed  missing  unexpected",
        "base                28      28        0           0",
        "LoRA                16      16        0           0",
        "projection           6       6        0           0",
        "special rows         3       3        0           0",
    ]
    assert codi("ask", "made/out", "How many?").exit_code == 0


def test_the_command_prints_the_report_of_a_refusal_too(codi, gpt2, state):
    save_upstream(drop("prj.3")(state), Path("codi"))
    said = codi("convert", "codi", "--base", gpt2[0] / "base", "--out", "out", "--alpha", 16)
    assert said.exit_code == 2
    assert "projection           6       4        2           0" in said.stdout
    assert said.stderr.startswith("codi: codi/pytorch_model.bin: its tensors do not fit: 2 missing, the first is prj.3")
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere/at/all"], "nowhere/at/all: no such file or folder"),
        (["zen-E/CODI-gpt2"], "fetch it once while online: hf download zen-E/CODI-gpt2"),
        ([".", "--alpha", "0"], "--alpha is 0, expected a number above 0"),
        ([".", "--alpha", "inf"], "--alpha is inf, expected a number above 0"),
    ],
)
def test_bad_input_at_the_command_line_is_one_sentence(codi, gpt2, words, sentence):
    said = codi("convert", *words, "--base", gpt2[0] / "base", "--out", "out")
    assert (said.exit_code, said.stdout) == (2, "")
    assert sentence in said.stderr


def cache(hub, name, folder):
    """Put a folder where the Hugging Face cache keeps a downloaded repository."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    return commit


def test_repositories_in_the_hugging_face_cache_are_converted_offline_and_the_base_is_pinned(gpt2, tmp_path):
    cache(tmp_path / "hub", "someone/codi", gpt2[0] / "codi")
    commit = cache(tmp_path / "hub", "someone/base", gpt2[0] / "base")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    convert = ["convert", "someone/codi", "--base", "someone/base", "--alpha", "16", "--out", "out"]
    for words in (convert, ["ask", "out", "How many?"]):
        command = [sys.executable, "-m", "codi_tracing", *words]
        said = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
    card = read_card(tmp_path / "out")
    assert (card.base, card.revision, card.provenance["converted_from"]) == (
        "someone/base",
        commit,
        f"someone/codi@{commit}",
    )


@pytest.mark.slow
def test_llama_3_2_1b_is_converted_within_12_gib(tmp_path):
    write = (
        "import sys; from pathlib import Path; from tests.support.upstream import *; write_llama_1b(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", write, tmp_path], check=True, cwd=ROOT)
    codi = [sys.executable, "-m", "codi_tracing", "convert", "codi", "--base", "base", "--out", "out", "--alpha", "32"]
    measure = (
        f"import resource, subprocess; subprocess.run({codi!r}, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", measure], check=True, cwd=tmp_path, capture_output=True, text=True)
    *report, kibibytes = done.stdout.splitlines()
    print(*report, f"peak: {int(kibibytes) / 2**20:.2f} GiB resident", sep="\n")
    assert int(kibibytes) < 12 * 2**20
    assert "LoRA               224     224        0           0" in report
    assert (tmp_path / "out" / CARD).is_file()
