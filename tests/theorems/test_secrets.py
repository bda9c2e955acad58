"""Nothing of the environment gets out: no key, no home folder, no path of this machine in what a run leaves or says."""

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
from tests.conftest import ROOT

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
def place(tmp_path_factory, random_checkpoint, pairs_file):
    """A folder to work in, a home of its own, the secrets in the environment, and a config."""
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


def codi(place: Path, *words: str) -> tuple[int, str]:
    """Run the command as a user would; everything that it says."""
    home = str(place / "private_home")
    environment = {**os.environ, **SECRETS, "HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "codi_tracing", *words], cwd=place, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(place):
    """A finished run with its report, and what was said."""
    code, said = codi(place, "run", "config.toml", "--device", "cpu")
    assert code == 0, said
    return place / "runs" / "a", said


def inside(path: Path) -> bytes:
    """A file's bytes, and those of its compressed parts."""
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


def test_no_file_of_a_run_tells_where_it_was_made(run, place, random_checkpoint, pairs_file):
    folder, _ = run
    places = (place, place / "private_home", Path.home(), ROOT, random_checkpoint.parent, pairs_file.parent)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        held = inside(path)
        assert [str(where) for where in places if len(where.parts) > 2 and str(where).encode() in held] == [], path.name


def test_a_run_says_no_key_and_no_home(run, place):
    _, said = run
    assert leaks(said.encode()) == []
    assert str(place / "private_home") not in said


@pytest.mark.parametrize(
    "words",
    [
        ("run", "missing.toml"),
        ("check", "broken", "--device", "cpu"),
        ("pairs", "check", "config.toml"),
        ("report", "."),
        ("convert", "broken", "--base", "someone/not-cached", "--out", "made"),
        ("ask", "broken", "How many?", "--device", "warp"),
    ],
    ids=" ".join,
)
def test_a_refusal_says_no_key_and_no_home(place, words):
    code, said = codi(place, *words)
    assert code == 2
    assert leaks(said.encode()) == []
    assert str(place / "private_home") not in said
    assert "Traceback" not in said


def test_a_run_leaves_nothing_beside_its_folder(run, place):
    assert {path.name for path in place.iterdir()} == {"broken", "config.toml", "missing.toml", "private_home", "runs"}
    assert [path.name for path in (place / "runs").iterdir()] == ["a"]
