"""A plan says before a run what the run does: cells, batches, forwards, products, rows, bytes."""

import doctest
import io
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from nnsight.schema.request import RequestModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config
from typer.testing import CliRunner

import codi_tracing.configs.model_shapes
import codi_tracing.patching.engine.batch
import codi_tracing.patching.engine.model_size
from codi_tracing.analysis.table import read_table
from codi_tracing.cli.main import app
from codi_tracing.configs.model_shapes import SIZES, known_shapes, read_shape
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.engine.model_size import anatomy_of, differences
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.pairs.selection import select_pairs
from codi_tracing.patching.plan import cost as costs
from codi_tracing.patching.plan.count import plan_run
from codi_tracing.patching.plan.inputs import at_hand
from codi_tracing.patching.runs.experiment import run_experiment
from codi_tracing.patching.runs.recipes import RECIPES, job, run_recipe
from codi_tracing.traces.lora_merge import merge_lora
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.remote import ndif as deployment
from tests.conftest import write_random_checkpoint

ROOT = Path(__file__).parents[3]
SHIPPED, PAIRS = ROOT / "traces/embedded/thought", ROOT / "patching/data/arithmetic_pairs.json"
PARAMETERS = {  # as Hugging Face counts them
    "gpt2": 124_439_808,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "llama-3.3-70b": 70_553_706_496,
}
MANY = {  # every kind of site, source and reading
    "kinds": ("resid", "head"),
    "sources": ("other", "unrelated", "noise"),
    "draws": 2,
    "knockouts": ("answer-question", "4-1@2"),
    "metrics": ("kl_from_corrupted", "logprob_clean", "logit_difference_at_eot", "edit_norm"),
}


def config(experiment="sweep", folder=SHIPPED, limit=3, file=PAIRS, **others) -> RunConfig:
    pairs = {"file": file, "limit": limit}
    return RunConfig(name="planned", checkpoint=folder, pairs=pairs, experiment=experiment, device="cpu", **others)


def planned(settings: RunConfig, part=None, **given):
    return plan_run(settings, at_hand(settings, **given), part)


def recorded(sweep) -> dict:
    """A planned sweep as a manifest records one."""
    return {
        "pairs": sweep.pairs,
        "cells_per_pair": sweep.cells_per_pair,
        "batches": sweep.of_batches,
        **{"pairs_per_batch": sweep.sizes.pairs_per_batch, "cells_per_forward": sweep.sizes.cells_per_forward},
        "estimated_gib": sweep.sizes.gib,
    }


@pytest.fixture(scope="module")
def shipped():
    return load_codi(SHIPPED, device="cpu")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("plan"), family=request.param)


@pytest.fixture
def codi(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["plan", *map(str, words)])


@contextmanager
def counted(model):
    """PyTorch's own count of each forward's products, the projection's among them, with attention that it can see."""
    module, found = model.lm._module, []
    forward = module.forward

    def counting(*args, **kwargs):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = forward(*args, **kwargs)
        found.append(counter.get_total_flops())
        return result

    module.forward = counting
    try:
        yield found
    finally:
        module.forward = forward


class Products(TorchDispatchMode):
    """The same without modules, whose hooks bear no gradient of a leaf."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (packet := func._overloadpacket) in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


def ready_to_run(settings: RunConfig):
    """The model as a run has it, LoRA merged or apart, and the pairs that it chooses."""
    model, read = load_codi(settings.checkpoint, device="cpu"), load_pairs(settings.pairs.file)
    if settings.merge_lora:
        model, _ = merge_lora(model, [pair.clean.question for pair in read[:4]])
    return model, select_pairs(model, read, settings)


def test_a_shape_has_as_many_parameters_as_its_base_is_known_to_have():
    assert {name: anatomy_of(read_shape(name), "auto").base_numbers for name in known_shapes()} == PARAMETERS


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_builds_as_many_parameters_from_a_shape(name):
    shape = read_shape(name)
    kept = {key: getattr(shape, key) for key in SIZES if key != "model_type"}
    if shape.model_type == "gpt2":
        kept = {"n_inner": kept.pop("intermediate_size"), **kept}
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.model_type, **kept))
    assert sum(p.numel() for p in built.parameters()) == PARAMETERS[name]


def test_the_examples_in_the_docstrings_hold():
    assert [
        doctest.testmod(module).failed
        for module in (codi_tracing.configs.model_shapes, codi_tracing.patching.engine.model_size)
    ] == [0, 0]


def test_gpt2s_shape_is_that_of_transformers():
    assert differences("gpt2", GPT2Config()) == []
    (said,) = differences("openai-community/gpt2", GPT2Config(n_layer=6))
    assert "num_hidden_layers 6, the shape gpt2 says 12" in said


def test_weights_are_those_that_are_loaded(folder):
    for dtype in ("float32", "bfloat16"):
        model, settings = load_codi(folder, "cpu", dtype), config(folder=folder, dtype=dtype)
        tensors = [*model.lm._module.parameters(), *model.project.parameters(), model.bot, model.eot]
        assert at_hand(settings).model.weight_bytes == sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    ("experiment", "others"),
    [
        ("sweep", {"reinitialised": True, "grid": ("stepwise", "prefixes"), "memory": 0.01}),
        ("attribution", {"kinds": ("resid", "latent", "kv"), "top": 3, "directions": ("noising",), "limit": 2}),
    ],
)
def test_a_plan_says_what_the_manifest_of_the_run_records(experiment, others, tmp_path):
    settings = config(experiment, **others)
    out = run_experiment(settings, tmp_path / "run", progress=False)
    manifest, plan = json.loads((out / "manifest.json").read_text()), planned(settings)
    assert [recorded(sweep) for sweep in plan.sweeps] == manifest["forwards"]
    assert sum(sweep.rows for sweep in plan.sweeps) == len(read_table(out / "cells.parquet"))


@pytest.mark.parametrize("experiment", sorted(set(RECIPES) - {"attribution", "matched"}))
def test_every_experiment_is_divided_as_it_is_planned(experiment, shipped):
    settings, dues = config(experiment, limit=20, memory=0.05), []
    chosen = select_pairs(shipped, load_pairs(PAIRS), settings)
    run_recipe(job(shipped, chosen, settings, lambda: lambda due, compute: dues.append(due)))
    found = [due for due in dues if due.place == 0]
    assert [(s.pairs, s.cells_per_pair, s.of_batches, s.sizes) for s in planned(settings).sweeps] == [
        (due.pairs, due.cells, due.of, due.sizes) for due in found
    ]


def test_matched_donors_are_bounded(shipped):
    settings, dues = config("matched", extra_problems=60, matches=4, limit=4), []
    chosen = select_pairs(shipped, load_pairs(PAIRS), settings)
    run_recipe(job(shipped, chosen, settings, lambda: lambda due, compute: dues.append(due)))
    corners, matched = planned(settings).sweeps
    assert corners.pairs == dues[0].pairs
    assert 0 < dues[-1].pairs <= matched.pairs
    assert matched.cells_per_pair == dues[-1].cells
    assert planned(settings, pairs=5).sweeps[1].pairs == 3 * 4 * 4


@pytest.mark.parametrize(
    ("experiment", "others"),
    [
        ("sweep", {"merge_lora": False, "limit": 2, "directions": ("noising",), **MANY}),
        ("sweep", {"cells_per_forward": 7, "max_new_tokens": 4, "limit": 2, "sources": ("other", "unrelated")}),
        ("early_stop", {"max_new_tokens": 1}),
        ("influence", {"max_new_tokens": 2, "limit": 2, "directions": ("denoising",)}),
        ("original", {"max_new_tokens": 2, "limit": 2}),
    ],
)
def test_products_and_forwards_are_those_that_pytorch_counts(experiment, others, folder, pairs_file):
    settings = config(experiment, folder, file=pairs_file, **others)
    model, chosen = ready_to_run(settings)
    with counted(model) as found:
        table = run_recipe(job(model, chosen, settings))
    noise = "noise" in settings.sources and experiment == "sweep"
    means = noise * -(-len(chosen.everyone) // 16) * (model.n_latents + 2)  # forwards that are not planned
    plan = planned(settings)
    assert len(found[means:]) == sum(sweep.forwards + sweep.decoding_forwards for sweep in plan.sweeps)
    assert sum(found[means:]) == plan.products.total
    assert len(table) == sum(sweep.rows for sweep in plan.sweeps)


def test_gradients_take_at_most_what_is_planned(folder, pairs_file):
    settings = config("attribution", folder, file=pairs_file, top=1)
    model, chosen = ready_to_run(settings)
    with Products() as products, sdpa_kernel(SDPBackend.MATH):
        job(model, chosen, settings).estimates()
    plan = planned(settings).sweeps[0].products.total
    assert 0.9 * plan < products.total <= plan  # what the last layer's last step would do is not done


@pytest.mark.parametrize(
    "others",
    [
        {"remote": "local", **MANY},
        {"remote": {"host": "local", "cells_per_job": 45}, "cells_per_forward": 20, "grid": ("sitewise",), "limit": 9},
    ],
)
def test_requests_and_results_are_as_large_as_planned(others, monkeypatch):
    settings, blobs, sent, returned = config(**others), [], [], []
    serialize, start_blocks = RequestModel.serialize.__func__, codi_tracing.traces.loop.thought.start_blocks

    def measured(cls, tracer, compress=False):
        blobs.append(len(blob := serialize(cls, tracer, compress)))
        return blob

    def begun(*args, **kwargs):
        started, buffer = start_blocks(*args, **kwargs), io.BytesIO()
        sent.append(blobs[-1])
        torch.save(started.result(), buffer)
        returned.append(buffer.tell())
        return started

    monkeypatch.setattr(RequestModel, "serialize", classmethod(measured))
    monkeypatch.setattr(codi_tracing.patching.engine.batch, "start_blocks", begun)
    model = load_codi(SHIPPED, "cpu", "auto", settings.remote)
    run_recipe(job(model, select_pairs(model, load_pairs(PAIRS), settings), settings))
    (plan,) = planned(settings).sweeps
    assert plan.jobs == len(sent)
    for found, told in ((sent, plan.sent), (returned, plan.returned)):
        assert (told.largest, told.all) == (pytest.approx(max(found), rel=0.1), pytest.approx(sum(found), rel=0.1))


def test_the_largest_request_is_what_is_sent_at_most():
    assert costs.LARGEST == deployment.LARGEST


def test_slices_add_up_to_the_run():
    settings = config(limit=None, pairs_per_batch=7)
    whole, parts = planned(settings), [planned(settings, (i, 3)) for i in (1, 2, 3)]
    for number in ("batches", "forwards", "rows", "jobs"):
        assert sum(getattr(part.sweeps[0], number) for part in parts) == getattr(whole.sweeps[0], number)
    assert sum(part.products.total for part in parts) == whole.products.total


def test_fewer_cells_a_job_make_more_jobs_and_smaller_requests():
    options = {"grid": ("sitewise",), "cells_per_forward": 10}
    whole, divided = (planned(config(**options, remote={"cells_per_job": each})) for each in (None, 25))
    blocks = -(-whole.sweeps[0].cells_per_pair // 10)
    assert (whole.sweeps[0].jobs, divided.sweeps[0].jobs) == (1, -(-blocks // 2))
    assert divided.sweeps[0].sent.largest < whole.sweeps[0].sent.largest
    assert divided.products.question == divided.sweeps[0].jobs * whole.products.question


def test_lora_is_apart_on_a_deployment():
    merged, apart, remote = (planned(config(**others)) for others in ({}, {"merge_lora": False}, {"remote": {}}))
    assert merged.products.total < apart.products.total == remote.products.total


def test_a_run_is_planned_where_neither_weights_nor_pairs_are(tmp_path):
    for name, shape in (("gsm8k_llama1b", "llama-3.2-1b-instruct"), ("gsm8k_gpt2", "gpt2")):
        text = (ROOT / f"configs/{name}.toml").read_text(encoding="utf-8")
        (tmp_path / "deeper").mkdir(exist_ok=True)
        (tmp_path / "deeper" / f"{name}.toml").write_text(text, encoding="utf-8")
        code = f"import sys; sys.argv = ['codi', 'plan', 'deeper/{name}.toml']\nfrom codi_tracing.cli.main import main\ntry:\n    main()\n"
        code += "except SystemExit as end:\n    print(end.code, *sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
        )
        assert not done.stderr
        *said, modules = done.stdout.splitlines()
        status, *loaded = modules.split()
        assert status == "0"
        assert not {"torch", "nnsight", "transformers", "pandas"} & set(loaded)
        text = "\n".join(said)
        assert f"is not at hand: by its name, the shape {shape} stands in" in text
        assert "the pairs gsm8k_pairs.json are not at hand: 66 stand in" in text.replace("The pairs", "the pairs")
        assert "70 tokens" in text


def test_a_base_that_is_not_at_hand_is_stood_in_for_by_its_shape(folder, tmp_path, codi):
    shutil.copytree(folder, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("base"))
    card = json.loads((folder / "codi.json").read_text())
    (tmp_path / "checkpoint/codi.json").write_text(json.dumps({**card, "base": "gpt2"}))
    done = codi(ROOT / "configs/tiny.toml", "--checkpoint", "checkpoint")
    assert "base gpt2 is not at hand: the shape gpt2, which names it, stands in" in done.stdout
    assert "66 pairs of arithmetic_pairs.json are a contrast as texts; no tokenizer has read them" in done.stdout
    (tmp_path / "checkpoint/codi.json").write_text(json.dumps({**card, "base": "base"}))
    done = codi(ROOT / "configs/tiny.toml", "--checkpoint", "checkpoint")
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_plan_in_json_says_everything_and_takes_a_rate(codi):
    large = (ROOT / "configs/gsm8k_llama1b.toml", "--shape", "llama-3.3-70b")
    done = codi(*large, "--pairs", 1000, "--json", "--tflops", 2)
    found = json.loads(done.stdout)
    assert found["sweeps"][0]["pairs"] == 1000
    assert found["model"]["d_model"] == 8192
    assert found["seconds_at_most"] == found["products"]["total"] / 2e12
    assert any("no CODI checkpoint over it is published" in sentence for sentence in found["assumptions"])
    spoken = codi(*large).stdout
    assert "not sent, unless compression brings it below 256 MiB" in spoken
    assert "seconds" not in spoken


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--shape", "llama-9"), "shape 'llama-9' is unknown; use gpt2, llama-3.1-8b, llama-3.2-1b-instruct, llama"),
        (("--pairs", "-3"), "--pairs is -3, wanted 1 to 1000000"),
        (("--tokens", "0"), "--tokens is 0, wanted 1 to 1000000"),
        (("--tflops", "-1"), "--tflops is -1, wanted a number above 0"),
        (("--limit", "-1"), "--limit is -1, wanted 1 or more"),
        (("--shard", "3/2"), "--shard is '3/2', wanted i/n"),
        (("--checkpoint", "somewhere"), "its name tells no size; give --shape, one of gpt2, "),
        (("--shape", "gpt2", "--tokens", "2000"), "a pair needs 2014 positions, the model has 1024"),
    ],
)
def test_each_bad_input_is_one_sentence(words, sentence, codi):
    done = codi(ROOT / "configs/gsm8k_llama1b.toml", *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert sentence in line


def test_a_training_and_slices_of_gradients_are_not_planned(codi):
    assert "wanted one for `codi run`" in codi(ROOT / "configs/train_base.toml").stderr
    assert "cannot be run in slices" in codi(ROOT / "configs/attribution.toml", "--shard", "1/2").stderr
