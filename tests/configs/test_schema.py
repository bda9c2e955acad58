"""Configs: every key is documented, every shipped file loads, every mistake is named."""

import re
from pathlib import Path

import pytest

from codi_tracing.configs.load import TABLES, ConfigError, load_config
from codi_tracing.configs.schema import RunConfig, TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RUN = 'name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\n'
CODI = 'out = "a"\nbase = "b"\n[codi]\n[optimiser]\nsteps = 1\nbatch = 1\nlr = 1e-3\n'


@pytest.fixture
def load(tmp_path):
    def load(text, kind=RunConfig, **instead):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, kind, **instead)

    return load


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    load_config(path, TrainConfig if path.name.startswith("train_") else RunConfig)


def test_the_readme_lists_exactly_the_keys_of_the_schema():
    sections = (CONFIGS / "README.md").read_text(encoding="utf-8").split("## `codi train`")
    listed = [re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) for section in sections]
    tables = [key for name in ("optimiser", "architecture", "codi") for key in TABLES[name].model_fields]
    assert listed[0] == [
        *RunConfig.model_fields,
        *(key for name in ("pairs", "remote", "tracking") for key in TABLES[name].model_fields),
    ]
    assert listed[1] == [key for key in TrainConfig.model_fields if key not in TABLES] + tables


def test_the_readme_states_the_defaults_of_the_schema():
    run, train = (CONFIGS / "README.md").read_text(encoding="utf-8").split("## `codi train`")
    texts = {name: run.split(f"`[{name}]`,")[-1] for name in ("pairs", "remote", "tracking")}
    tables = [(texts.get(name, train), table) for name, table in TABLES.items()]
    for text, record in ((run, RunConfig), (train, TrainConfig), *tables):
        for key, field in record.model_fields.items():
            stated = re.search(rf"^\| `{key}` \| (.*?) \|", text, re.MULTILINE)
            if field.is_required() and key not in TABLES:
                assert stated[1] == "required", key
            elif isinstance(field.default, int | float):
                assert stated[1] == f"`{str(field.default).lower()}`", key


def test_paths_are_relative_to_the_config_file(load, tmp_path):
    config = load('name = "a"\ncheckpoint = "../model"\npairs.file = "data/pairs.json"\nout = "/elsewhere"')
    assert config.checkpoint == (tmp_path / "../model").resolve()
    assert config.pairs.file == (tmp_path / "data/pairs.json").resolve()
    assert config.out == Path("/elsewhere")


def test_pairs_are_a_table_and_a_bare_path_says_so(load):
    with pytest.raises(ConfigError, match=r"'pairs' is a text, wanted a table: \[pairs\] and in it file = …"):
        load('name = "a"\ncheckpoint = "model"\npairs = "pairs.json"')
    with pytest.raises(ConfigError, match=r"'pairs.filter' is 'correct', wanted 'usable' or 'both_correct'"):
        load(RUN + 'pairs.filter = "correct"')


def test_a_home_folder_that_is_not_there_and_bottomless_nesting_are_refused(load):
    with pytest.raises(ConfigError, match="'checkpoint' is '~nobody-here/x', wanted a path"):
        load(RUN.replace('"model"', '"~nobody-here/x"'))
    with pytest.raises(ConfigError, match="is nested too deeply to be read"):
        load("a = " + "[" * 5000 + "]" * 5000)


def test_a_config_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load(RUN).seed = 1


def test_what_is_given_instead_replaces_the_file_and_nothing_replaces_nothing(load):
    config = load(RUN + "pairs.limit = 3\nseed = 7", pairs__limit=5, seed=None)
    assert (config.pairs.limit, config.seed) == (5, 7)
    with pytest.raises(ConfigError, match="--limit is 0, wanted 1 or more"):
        load(RUN, pairs__limit=0)


def test_all_problems_are_named_in_one_line(load):
    with pytest.raises(ConfigError) as error:
        load('name = "../up"\nchekpoint = "a"\nseed = "1"\npairs.limit = true\ndirections = ["up"]')
    message = str(error.value)
    for problem in (
        "unknown key 'chekpoint', the nearest known key is 'checkpoint'",
        "the key 'checkpoint' is missing",
        "the key 'pairs.file' is missing",
        "'name' is '../up', wanted letters, digits",
        "'seed' is '1', wanted a whole number",
        "'pairs.limit' is True, wanted a whole number",
        "'directions.0' is 'up', wanted 'denoising' or 'noising'",
    ):
        assert problem in message
    assert message.count(";") == 6
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('dtype = "fp16"', "'dtype' is 'fp16', wanted 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("metrics = []", "'metrics' is [], wanted one or more names"),
        ('metrics = ["answer", "answer"]', "wanted each name once"),
        ("device = 0", "'device' is 0, wanted text in quotes"),
        ("pairs_per_batch = 1.5", "'pairs_per_batch' is 1.5, wanted a whole number"),
        ("seed = -1", "'seed' is -1, wanted 0 or more"),
        ("directions = 3", "'directions' is 3, wanted a list"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_wanted(load, line, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(RUN + line)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('experiment = "shaply"', "wanted 'sweep', 'early_stop', 'influence'"),
        ('experiment = "shapley"\ntop = 3', "'top' has no meaning in the experiment 'shapley'; remove it"),
        ('experiment = "matched"\nreinitialised = true', "'reinitialised' has no meaning in the experiment 'matched'"),
        ('experiment = "original"\ndirections = ["noising"]', "'directions' has no meaning in the experiment"),
        (
            'experiment = "influence"\nkinds = ["head"]',
            "'kinds' is head in the experiment 'influence', wanted one of latent",
        ),
        (
            'experiment = "matched"\nkinds = ["resid", "mlp"]',
            "'kinds' is resid, mlp in the experiment 'matched', wanted one",
        ),
        ('knockouts = ["anwser-3"]', "'knockouts.0' is 'anwser-3', wanted an attention edge: answer-question"),
        ("low_ceiling = 2.0", "'low_ceiling' is 2.0, wanted 1.0 or less"),
        ("beyond = -1", "'beyond' is -1, wanted 0 or more"),
    ],
)
def test_what_an_experiment_settles_itself_is_refused(load, line, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(RUN.replace("pairs.file", f"{line}\npairs.file"))


def test_what_is_left_out_fits_the_rest_and_a_dumped_config_loads_again(load):
    assert load(RUN).sources == ("other", "unrelated", "noise")
    assert load(RUN + 'kinds = ["kv"]').sources == ("other", "unrelated")
    attribution = load(RUN + 'experiment = "attribution"')
    assert attribution.kinds == ("latent", "resid", "attn", "mlp", "head", "kv")
    assert RunConfig.model_validate(attribution.model_dump()) == attribution


def test_the_settings_of_a_run_leave_out_where_things_are_and_what_the_experiment_settles(load):
    settings = load(RUN + 'experiment = "shapley"').settings()
    assert not {"out", "checkpoint", "grid", "kinds", "beyond"} & set(settings)
    assert settings["experiment"] == "shapley"
    assert "file" not in settings["pairs"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (CODI.replace("[codi]", "[codi]\nrnk = 3"), "unknown key 'codi.rnk', the nearest known key is 'codi.rank'"),
        (CODI.replace('base = "b"\n', ""), "needs a base to train over"),
        (CODI.replace("[codi]", "[architecture]"), "trains a new base, so base has no meaning"),
        (CODI.replace("[codi]\n", ""), "found neither of [architecture] and [codi]"),
        (CODI.replace("[codi]", "[architecture]\n[codi]"), "found both of [architecture] and [codi]"),
        (CODI.replace("[codi]", "[codi]\nhide_question = 1.5"), "'codi.hide_question' is 1.5, wanted 1.0 or less"),
        (CODI.replace("1e-3", "nan"), "'optimiser.lr' is nan"),
        (CODI.replace("[codi]", "[architecture]\nheads = 3"), "d_model is 64 with 3 heads, wanted a multiple of 6"),
        (CODI.replace("[codi]", "[architecture]\nkv_heads = 3"), "heads is 4, wanted a multiple of kv_heads"),
        (RUN, "is a config for `codi run`, wanted one for `codi train`"),
    ],
)
def test_a_training_that_means_nothing_is_refused(load, text, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(text, TrainConfig)


def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(load, tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.toml: no such file; give a TOML config"):
        load_config(tmp_path / "nope.toml", RunConfig)
    with pytest.raises(ConfigError, match="is a folder, wanted a TOML file"):
        load_config(tmp_path, RunConfig)
    with pytest.raises(ConfigError, match="is not valid TOML .*line 1"):
        load("name = \n")
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "latin.toml", RunConfig)


def test_tracking_is_off_unless_asked_for_and_is_no_part_of_what_a_run_is(load):
    plain = load(RUN)
    assert plain.tracking is None
    tracked = load(RUN + 'tracking.wandb = "offline"')
    assert tracked.tracking.project == "cot-exploration"
    assert tracked.settings() == plain.settings()
    with pytest.raises(ConfigError, match="'tracking.wandb' is 'on', wanted 'offline' or 'online'"):
        load(RUN + 'tracking.wandb = "on"')
    with pytest.raises(
        ConfigError, match="unknown key 'tracking.projekt', the nearest known key is 'tracking.project'"
    ):
        load(RUN + 'tracking.wandb = "offline"\ntracking.projekt = "a"')


@pytest.mark.parametrize(
    ("text", "host"),
    [("true", None), ('"local"', "local"), ('{ host = "http://127.0.0.1:8001" }', "http://127.0.0.1:8001")],
)
def test_remote_is_a_switch_or_a_table_and_of_it_the_host_alone_bears_on_results(tmp_path, text, host):
    def read(more: str) -> RunConfig:
        (tmp_path / "a.toml").write_text(f"name = 'a'\ncheckpoint = 'c'\npairs = {{ file = 'p' }}\n{more}")
        return load_config(tmp_path / "a.toml", RunConfig)

    here, there = read(""), read(f"remote = {text}")
    assert here.remote is None
    assert read("remote = false").settings() == here.settings()
    assert there.remote.host == host
    assert there.settings() == {**here.settings(), "remote": host or "nnsight's"}
    assert read("remote = { retries = 9, jobs = 3 }").settings() == read("remote = true").settings()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('"x"', "'remote' is a text, wanted true, false, \"local\" or a table"),
        ("3", "'remote' is 3, wanted a table"),
        ('{ host = "127.0.0.1" }', "'remote.host' is '127.0.0.1', wanted a web address with http:// or https://"),
        ('{ hots = "http://a" }', "unknown key 'remote.hots', the nearest known key is 'remote.host'"),
        ("{ jobs = 0 }", "'remote.jobs' is 0, wanted 1 or more"),
    ],
)
def test_what_remote_cannot_be_is_refused(tmp_path, text, sentence):
    (tmp_path / "a.toml").write_text(f"name = 'a'\ncheckpoint = 'c'\npairs = {{ file = 'p' }}\nremote = {text}")
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_config(tmp_path / "a.toml", RunConfig)
