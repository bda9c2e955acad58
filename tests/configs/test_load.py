"""Configs are found by path or by name, all of their problems are named at once, and their paths become absolute."""

from pathlib import Path

import pytest

from codi_tracing.configs.load import ConfigError, load_config, shipped_configs
from codi_tracing.configs.schema import RunConfig
from codi_tracing.configs.train_schema import TrainConfig
from tests.configs.conftest import RUN

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_loads_by_its_path_and_by_its_name(name):
    kind = TrainConfig if name.startswith("train_") else RunConfig
    by_path = load_config(ROOT / "configs" / f"{name}.toml", kind)
    by_name = load_config(name, kind)
    assert by_name.model_dump(exclude={"checkpoint", "pairs", "out", "base"}) == by_path.model_dump(
        exclude={"checkpoint", "pairs", "out", "base"}
    )


@pytest.mark.parametrize("name", ["tiny", "tiny.toml", Path("sitewise")])
def test_a_config_found_by_name_reads_shipped_files_and_writes_under_the_current_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = load_config(name, RunConfig)
    assert config.name == Path(name).stem
    assert config.checkpoint == ROOT / "traces" / "embedded" / "thought"
    assert config.pairs.file == ROOT / "patching" / "data" / "arithmetic_pairs.json"
    assert config.out is None  # runs/<name> under the current folder


def test_files_that_are_not_shipped_are_looked_for_under_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "mine.toml").write_text(RUN.replace('"model"', '"../models/a"'))
    monkeypatch.setitem(shipped_configs(), "mine", tmp_path / "installed" / "mine.toml")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load_config("mine", RunConfig).checkpoint == tmp_path / "here" / "models" / "a"
    (tmp_path / "models" / "a").mkdir(parents=True)
    assert load_config("mine", RunConfig).checkpoint == tmp_path / "models" / "a"


def test_a_file_of_a_shipped_name_in_the_current_folder_is_read_instead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RUN)
    assert load_config("tiny.toml", RunConfig).name == "a"
    assert load_config("tiny", RunConfig).name == "tiny"


def test_paths_are_relative_to_the_config_file(load, tmp_path):
    config = load('name = "a"\ncheckpoint = "../model"\npairs.file = "data/pairs.json"\nout = "/elsewhere"')
    assert config.checkpoint == (tmp_path / "../model").resolve()
    assert config.pairs.file == (tmp_path / "data/pairs.json").resolve()
    assert config.out == Path("/elsewhere")


def test_paths_through_a_linked_folder_of_configs_are_those_of_its_target(tmp_path):
    (tmp_path / "clone" / "configs").mkdir(parents=True)
    (tmp_path / "clone" / "configs" / "a.toml").write_text(RUN.replace('"model"', '"../traces/model"'))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "configs").symlink_to("../clone/configs")
    config = load_config(tmp_path / "links" / "configs" / "a.toml", RunConfig)
    assert config.checkpoint == tmp_path / "clone" / "traces" / "model"


def test_an_unknown_home_folder_and_deep_nesting_are_refused(load):
    with pytest.raises(ConfigError, match="'checkpoint' is '~nobody-here/x', expected a path"):
        load(RUN.replace('"model"', '"~nobody-here/x"'))
    with pytest.raises(ConfigError, match="is nested too deeply to be read"):
        load("a = " + "[" * 5000 + "]" * 5000)


def test_an_override_replaces_the_files_value_and_none_replaces_nothing(load):
    config = load(RUN + "pairs.limit = 3\nseed = 7", pairs__limit=5, seed=None)
    assert (config.pairs.limit, config.seed) == (5, 7)
    with pytest.raises(ConfigError, match="--limit is 0, expected 1 or more"):
        load(RUN, pairs__limit=0)


def test_all_problems_are_named_in_one_line(load):
    with pytest.raises(ConfigError) as error:
        load('name = "../up"\nchekpoint = "a"\nseed = "1"\npairs.limit = true\ndirections = ["up"]')
    message = str(error.value)
    for problem in (
        "unknown key 'chekpoint', the nearest known key is 'checkpoint'",
        "the key 'checkpoint' is missing",
        "the key 'pairs.file' is missing",
        "'name' is '../up', expected letters, digits",
        "'seed' is '1', expected a whole number",
        "'pairs.limit' is True, expected a whole number",
        "'directions.0' is 'up', expected 'denoising' or 'noising'",
    ):
        assert problem in message
    assert message.count(";") == 6
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(load, tmp_path):
    with pytest.raises(
        ConfigError, match=r"nope\.toml: no such file; give a TOML config, or a shipped one by name: abl"
    ):
        load_config(tmp_path / "nope.toml", RunConfig)
    with pytest.raises(ConfigError, match="is a folder, expected a TOML file"):
        load_config(tmp_path, RunConfig)
    with pytest.raises(ConfigError, match="is not valid TOML .*line 1"):
        load("name = \n")
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "latin.toml", RunConfig)


def test_only_a_key_that_is_near_is_suggested_for_an_unknown_one(load):
    with pytest.raises(ConfigError, match="unknown key 'seeds', the nearest known key is 'seed'"):
        load(RUN + "seeds = 3")
    for key in ("zzz", "qqqqqqqq", "wandb_entity_x"):
        with pytest.raises(ConfigError) as error:
            load(RUN + f"{key} = 3")
        assert f"unknown key '{key}'; the known keys are " in str(error.value)
        assert "nearest" not in str(error.value)
        assert ", pairs.file, pairs.filter, " in str(error.value)


def test_a_byte_order_mark_in_a_config_changes_nothing(load):
    assert load("\ufeff" + RUN) == load(RUN)
