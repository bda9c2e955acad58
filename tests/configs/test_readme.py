"""The configs' README lists every key with its default, and every name with the vocabulary's words."""

import re
from pathlib import Path

import pytest

from codi_tracing.configs import vocabulary
from codi_tracing.configs.load import CONFIG_TABLES, KEYS
from codi_tracing.configs.schema import RECORDS, RunConfig
from codi_tracing.configs.train_schema import TrainConfig

FOLDER = Path(__file__).parents[2] / "configs"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
RUN, TRAIN = README.split("## `codi train`")


def rows(header: str) -> dict[str, list[str]]:
    """The cells of a table with this header, by the name in the first cell."""
    table = README.split(f"{header}\n")[1].split("\n\n")[0]
    lines = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines()[1:]]
    return {re.search(r"`(\w+|…_at_eot)`", first)[1]: rest for first, *rest in lines}


def test_the_readme_lists_exactly_the_keys_of_the_schema():
    keys_of_runs = RUN.split("keys of every experiment")[1]
    names, of_training = (
        re.findall(r"^\| `(\w+)` \| .* \| .* \|$", text, re.MULTILINE) for text in (keys_of_runs, TRAIN)
    )
    tables = [key for name in ("pairs", "remote", "tracking") for key in CONFIG_TABLES[name].model_fields]
    own = [key for key in KEYS[RunConfig] if key not in RunConfig.model_fields]
    assert names[: len(RunConfig.model_fields)] == list(RunConfig.model_fields)
    assert sorted(names) == sorted([*RunConfig.model_fields, *tables, *own])
    tables = [key for name in ("optimiser", "architecture", "codi") for key in CONFIG_TABLES[name].model_fields]
    assert of_training == [key for key in TrainConfig.model_fields if key not in CONFIG_TABLES] + tables


def test_the_readme_states_the_defaults_of_the_schema():
    texts = {name: RUN.split(f"`[{name}]`,")[-1] for name in ("pairs", "remote", "tracking")}
    tables = [(texts.get(name, TRAIN), table) for name, table in CONFIG_TABLES.items()]
    for text, record in (*((RUN, record) for record in RECORDS.values()), (TRAIN, TrainConfig), *tables):
        for key, field in record.model_fields.items():
            stated = re.search(rf"^\| `{key}` \| (.*?) \|", text, re.MULTILINE)
            if field.is_required() and key not in CONFIG_TABLES:
                assert stated[1] == "required", key
            elif isinstance(field.default, int | float):
                assert stated[1] == f"`{str(field.default).lower()}`", key


def test_the_readme_lists_each_experiment_with_its_question_and_its_keys():
    listed = rows("| `experiment` | question | its keys |")
    assert list(listed) == list(vocabulary.EXPERIMENTS)
    for name, (question, keys) in listed.items():
        assert question == vocabulary.EXPERIMENTS[name].question
        own = set(RECORDS[name].model_fields) - set(RunConfig.model_fields)
        assert set(re.findall(r"`(\w+)`", keys)) == own
    assert rows("| config | question |") == {name: [sweep.question] for name, sweep in vocabulary.SWEEPS.items()}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("| `grid` | sites |", vocabulary.GRIDS),
        ("| `kinds` | what is written |", {k: vocabulary.SITE_KINDS[k].meaning for k in vocabulary.GRID_KINDS}),
        ("| `sources` | value |", {k: vocabulary.SOURCES[k].words for k in vocabulary.CONFIG_SOURCES}),
        ("| `freeze` | route |", vocabulary.ROUTES),
    ],
)
def test_the_readme_has_the_vocabularys_words(header, words):
    assert rows(header) == {name: [text] for name, text in words.items()}


def test_the_readme_defines_every_metric_of_a_config():
    listed = {name: text.replace("\\", "") for name, (text,) in rows("| `metrics` | definition |").items()}
    at_eot = [name for name in vocabulary.CONFIG_METRICS if name.endswith("_at_eot")]
    last = listed.pop("…_at_eot")
    assert re.findall(r"`(\w+)`", last) == at_eot
    assert last.endswith(vocabulary.AT_EOT)
    others = [name for name in vocabulary.CONFIG_METRICS if name not in at_eot]
    assert listed == {name: vocabulary.METRICS[name].definition for name in others}


def test_the_readme_links_every_file_of_the_folder():
    links = set(re.findall(r"\]\(([^)]+)\)", README))
    files = {path.name for path in FOLDER.glob("*.*")} - {"README.md", "__init__.py"}
    assert links == files
