"""No API key, home folder or path of this machine appears in the files or the output of a run."""

import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from codi_tracing.analysis.io.table_file import read_table
from tests.support.places import ROOT

KEYS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "NDIF_API_KEY",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
)
SECRETS = {name: f"hf_planted{name.lower()}0123456789" for name in KEYS}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, random_checkpoint, pairs_file):
    """A folder with a config, two broken inputs, and a home folder of its own."""
    here = tmp_path_factory.mktemp("visible_work")
    (here / "private_home").mkdir()
    text = (
        f'name = "a"\ncheckpoint = "{random_checkpoint}"\nout = "runs/a"\n[pairs]\nfile = "{pairs_file}"\nlimit = 2\n'
    )
    (here / "config.toml").write_text(text)
    (here / "missing.toml").write_text(text.replace(str(random_checkpoint), "nowhere"))
    broken = here / "broken"
    broken.mkdir()
    (broken / "codi.json").write_text(json.dumps({"base": "someone/not-cached", "n_latents": 6}))
    (broken / "adapter").mkdir()
    (broken / "adapter" / "adapter_config.json").write_text("{}")
    return here


def python(workplace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A new Python interpreter with the keys in its environment and its own home folder."""
    home = str(workplace / "private_home")
    environment = {**os.environ, **SECRETS, "HOME": home, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=workplace, env=environment, capture_output=True, text=True
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(workplace):
    """A finished run with its report, and its output."""
    done = python(workplace, "-m", "codi_tracing", "run", "config.toml", "--device", "cpu")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return workplace / "runs" / "a", output


def inside(path: Path) -> bytes:
    """A file's bytes, and its compressed parts uncompressed."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        buffer = io.StringIO()
        read_table(path).to_csv(buffer)
        return data + buffer.getvalue().encode()
    return data + zlib.decompress(b"".join(pixels(data))) if path.suffix == ".png" else data


def pixels(png: bytes) -> Iterator[bytes]:
    """The compressed chunks of a PNG."""
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            yield png[at + 8 : at + 8 + length]
        at += length + 12


def leaks(text: bytes) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret.encode() in text]


def test_no_file_of_a_run_holds_a_key(run):
    folder, _ = run
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {str(path): leaks(inside(path)) for path in files if leaks(inside(path))} == {}


def test_no_file_of_a_run_holds_a_path_of_this_machine(run, workplace, random_checkpoint, pairs_file):
    folder, _ = run
    folders = (workplace, workplace / "private_home", Path.home(), ROOT, random_checkpoint.parent, pairs_file.parent)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = inside(path)
        leaked = [str(one) for one in folders if len(one.parts) > 2 and str(one).encode() in content]
        assert leaked == [], path.name


def test_the_output_of_a_run_holds_no_key_and_no_home(run, workplace):
    _, output = run
    assert leaks(output.encode()) == []
    assert str(workplace / "private_home") not in output


BAD_COMMANDS = {
    " ".join(words): words
    for words in (
        ("run", "missing.toml"),
        ("check", "broken", "--device", "cpu"),
        ("pairs", "check", "config.toml"),
        ("report", "."),
        ("convert", "broken", "--base", "someone/not-cached", "--out", "made"),
        ("ask", "broken", "How many?", "--device", "warp"),
    )
}
CALL_EACH = """
import json, sys
from typer.testing import CliRunner
from codi_tracing.cli.main import app
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
    print(json.dumps([result.exit_code, result.output + (f"Traceback {result.exception!r}" if unexpected else "")]))
"""


@pytest.fixture(scope="module")
def refusals(workplace):
    """The exit code and the output of every bad command, from one interpreter."""
    done = python(workplace, "-c", CALL_EACH, json.dumps(list(BAD_COMMANDS.values())))
    assert done.returncode == 0, done.stderr
    assert leaks(done.stderr.encode()) == []
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(BAD_COMMANDS, results, strict=True))


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_a_refusal_holds_no_key_and_no_home(refusals, workplace, command):
    code, output = refusals[command]
    assert code == 2
    assert output.startswith("codi: ")
    assert leaks(output.encode()) == []
    assert str(workplace / "private_home") not in output
    assert "Traceback" not in output


def test_a_run_writes_nothing_beside_its_folder(run, refusals, workplace):
    names = {path.name for path in workplace.iterdir()}
    assert names == {"broken", "config.toml", "missing.toml", "private_home", "runs"}
    assert [path.name for path in (workplace / "runs").iterdir()] == ["a"]
