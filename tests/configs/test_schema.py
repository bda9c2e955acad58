"""A run's config: each experiment has its keys, wrong values are refused, settings are the keys that change results."""

import re

import pytest

from codi_tracing.configs.load import ConfigError, load_config
from codi_tracing.configs.schema import RECORDS, RunConfig
from tests.configs.conftest import RUN


def test_pairs_are_a_table_and_a_bare_path_is_refused(load):
    with pytest.raises(ConfigError, match=r"'pairs' is 'pairs.json', expected a table: \[pairs\] and in it file = …"):
        load('name = "a"\ncheckpoint = "model"\npairs = "pairs.json"')
    with pytest.raises(ConfigError, match=r"'pairs.filter' is 'correct', expected 'usable' or 'both_correct'"):
        load(RUN + 'pairs.filter = "correct"')


def test_a_config_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load(RUN).seed = 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('dtype = "fp16"', "'dtype' is 'fp16', expected 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("metrics = []", "'metrics' is [], expected one or more names"),
        ('metrics = ["answer", "answer"]', "expected each name once"),
        ('metrics = ["kl_to_claen"]', "or 'prediction_change_at_eot' (did you mean 'kl_to_clean'?)"),
        ("device = 0", "'device' is 0, expected text in quotes"),
        ("pairs_per_batch = 1.5", "'pairs_per_batch' is 1.5, expected a whole number"),
        ("seed = -1", "'seed' is -1, expected 0 or more"),
        ('seed = "1"', "'seed' is '1', expected a whole number"),
        ("directions = 3", "'directions' is 3, expected a list"),
        ("low_ceiling = 2.0", "'low_ceiling' is 2.0, expected 1.0 or less"),
        ('knockouts = ["anwser-3"]', "'knockouts.0' is 'anwser-3', expected an attention edge: answer-question"),
        ('experiment = "early_stop"\nbeyond = -1', "'beyond' is -1, expected 0 or more"),
        ("also_unfrozen = true", "'also_unfrozen' is true and 'freeze' names no route"),
        (
            'experiment = "influence"\nkinds = ["head"]',
            "'kinds' is head in the experiment 'influence', expected one of latent",
        ),
        (
            'experiment = "matched"\nkinds = ["resid", "mlp"]',
            "'kinds' is resid, mlp in the experiment 'matched', expected one",
        ),
        (
            'experiment = "attribution"\nremote = true',
            "'remote' has no meaning in the experiment 'attribution': it computes gradients, here; remove it",
        ),
        ("reinitialised = true\nremote = true", "'reinitialised' is true and 'remote' is set"),
    ],
)
def test_a_wrong_value_is_named_with_the_expected_one(load, line, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(RUN.replace("pairs.file", f"{line}\npairs.file"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            'experiment = "shapley"\ntop = 3',
            "'top' has no meaning in the experiment 'shapley'; remove it, it can be given",
        ),
        ('experiment = "matched"\nreinitialised = true', "'reinitialised' has no meaning in the experiment 'matched'"),
        (
            'experiment = "original"\ndirections = ["noising"]',
            "'directions' has no meaning in the experiment 'original'",
        ),
        ('experiment = "early_stop"\ngrid = ["layerwise"]', "'grid' has no meaning in the experiment 'early_stop'"),
        ("beyond = 3", "'beyond' has no meaning in the experiment 'sweep'; remove it, it can be given directions"),
    ],
)
def test_a_key_of_another_experiment_is_refused_with_the_keys_of_this_one(load, line, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(RUN.replace("pairs.file", f"{line}\npairs.file"))


def test_an_unknown_experiment_is_the_only_problem_of_a_config_with_its_keys(load):
    with pytest.raises(ConfigError) as error:
        load(RUN + 'experiment = "shaply"\ntop = 3\nbeyond = 2')
    assert str(error.value).endswith(
        "'experiment' is 'shaply', expected 'sweep', 'early_stop', 'influence', 'iterative', 'matched', 'original', "
        "'attribution' or 'shapley' (did you mean 'shapley'?)"
    )


@pytest.mark.parametrize("experiment", ["3", "[]", "{ a = 1 }"])
def test_an_experiment_that_is_no_text_is_refused(load, experiment):
    with pytest.raises(ConfigError, match="'experiment' is .*, expected text in quotes$"):
        load(f"{RUN}experiment = {experiment}\ntop = 3")


def test_defaults_fit_the_experiment_and_the_kinds_and_a_dumped_config_loads_again(load):
    assert load(RUN).sources == ("other", "unrelated", "noise")
    assert load(RUN + 'kinds = ["kv"]').sources == ("other", "unrelated")
    attribution = load(RUN + 'experiment = "attribution"')
    assert attribution.kinds == ("latent", "resid", "attn", "mlp", "head", "kv")
    assert RunConfig.model_validate(attribution.model_dump()) == attribution


@pytest.mark.parametrize("experiment", RECORDS)
def test_a_config_made_in_python_is_the_record_of_its_experiment(load, experiment):
    made = RunConfig(name="a", checkpoint="model", pairs={"file": "pairs.json"}, experiment=experiment)
    assert type(made) is type(load(RUN + f'experiment = "{experiment}"')) is RECORDS[experiment]
    assert made.model_copy(update={"seed": 3}).experiment == experiment


def test_a_key_that_an_experiment_lacks_reads_as_its_default(load):
    matched = load(RUN + 'experiment = "matched"')
    assert (matched.draws, matched.directions, matched.reinitialised) == (1, ("denoising", "noising"), False)
    assert (matched.protocol, matched.beyond, matched.sources[:2]) == ("latent_loop", 2, ("other", "unrelated"))
    with pytest.raises(AttributeError, match="no key 'layer'"):
        matched.layer  # noqa: B018


@pytest.mark.parametrize("experiment", RECORDS)
def test_settings_are_the_keys_of_the_experiment_that_bear_on_results(load, experiment):
    config = load(RUN + f'experiment = "{experiment}"\npairs.limit = 3')
    settings = config.settings()
    assert set(settings) == set(RECORDS[experiment].model_fields) - {
        "out", "checkpoint", "max_failed", "remote", "tracking",
    }  # fmt: skip
    assert settings["experiment"] == experiment
    assert settings["pairs"] == {"filter": "usable", "limit": 3, "seed": None}


def test_tracking_is_off_by_default_and_no_part_of_a_runs_settings(load):
    plain = load(RUN)
    assert plain.tracking is None
    tracked = load(RUN + 'tracking.wandb = "offline"')
    assert tracked.tracking.project == "cot-exploration"
    assert tracked.settings() == plain.settings()
    with pytest.raises(ConfigError, match="'tracking.wandb' is 'on', expected 'offline' or 'online'"):
        load(RUN + 'tracking.wandb = "on"')
    with pytest.raises(
        ConfigError, match="unknown key 'tracking.projekt', the nearest known key is 'tracking.project'"
    ):
        load(RUN + 'tracking.wandb = "offline"\ntracking.projekt = "a"')


@pytest.mark.parametrize(
    ("text", "host"),
    [("true", None), ('"local"', "local"), ('{ host = "http://127.0.0.1:8001" }', "http://127.0.0.1:8001")],
)
def test_remote_is_a_switch_or_a_table_and_only_its_host_is_a_setting(load, text, host):
    here, there = load(RUN), load(f"{RUN}remote = {text}")
    assert here.remote is None
    assert load(RUN + "remote = false").settings() == here.settings()
    assert there.remote.host == host
    assert there.settings() == {**here.settings(), "remote": host or "nnsight's"}
    assert load(RUN + "remote = { retries = 9, jobs = 3 }").settings() == load(RUN + "remote = true").settings()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('"x"', "'remote' is 'x', expected true, false, \"local\" or a table"),
        ("3", "'remote' is 3, expected true, false, \"local\" or a table"),
        ('{ host = "127.0.0.1" }', "'remote.host' is '127.0.0.1', expected a web address with http:// or https://"),
        ('{ hots = "http://a" }', "unknown key 'remote.hots', the nearest known key is 'remote.host'"),
        ("{ jobs = 0 }", "'remote.jobs' is 0, expected 1 or more"),
    ],
)
def test_a_wrong_remote_is_refused(load, text, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load(f"{RUN}remote = {text}")


def test_the_knockout_config_knocks_out_question_bot_and_each_step():
    config = load_config("knockout", RunConfig)
    assert config.experiment == "sweep"
    assert config.knockouts == ("answer-question", "answer-bot", *(f"answer-{step}" for step in range(6)))
    assert {"answer_is_clean", "answer_is_corrupted"} <= set(config.metrics)  # what its figure reads
