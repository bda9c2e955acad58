"""The wheel holds all that a user needs, a read-only installation works, and a user's own folders hide nothing."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("analysis", "codi_tracing", "configs", "patching", "traces")


def python(*words, folder, **environment):
    """Run this Python in `folder`, with the project imported from wherever `environment` says."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's files alone, all of them read-only."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", ".", folder=source)
    (wheel,) = (source / "dist").glob("*.whl")
    python(*pip, "install", "--no-deps", "--no-compile", "--target", site, wheel, folder=source)
    for path in site.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield site
    for path in site.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


def test_the_wheel_holds_every_package_and_every_data_file(installed):
    data = {".py", ".pyi", ".typed", ".toml", ".json", ".safetensors", ".js", ".css", ".html"}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in data and not {"notebooks", "__pycache__"} & set(path.parts):
                name = path.relative_to(ROOT if folder != "codi_tracing" else ROOT / folder)
                assert (installed / "codi_tracing" / name).is_file(), f"{name} is not in the wheel"
    assert (installed / "codi_tracing" / "configs" / "README.md").is_file()


def test_a_shipped_config_runs_by_name_outside_the_clone_from_a_read_only_installation(installed, tmp_path):
    before = digests(installed)
    environment = {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    where = python("-c", "import codi_tracing; print(codi_tracing.__file__)", folder=tmp_path, **environment)
    assert Path(where.strip()).is_relative_to(installed)
    printed = python("-m", "codi_tracing", "run", "tiny", "--limit", "4", folder=tmp_path, **environment)
    assert "Report: runs/tiny/report.html" in printed
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert digests(installed) == before


def test_commands_work_without_assertions_and_docstrings(tmp_path):
    words = ("-m", "codi_tracing", "ask", "thought", "On Sunday Ann had 7 pens. Ann found 5 pens on Monday. How many?")
    assert python(*words, folder=tmp_path, PYTHONOPTIMIZE="2") == python(*words, folder=tmp_path)
    printed = python("-m", "codi_tracing", "run", "tiny", "--limit", "2", folder=tmp_path, PYTHONOPTIMIZE="2")
    assert "Report: runs/tiny/report.html" in printed
    assert "--limit" in python("-m", "codi_tracing", "run", "--help", folder=tmp_path, PYTHONOPTIMIZE="2")


def test_scripts_work_beside_a_users_own_folders_of_our_names(tmp_path):
    for folder in FOLDERS[:1] + FOLDERS[2:]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise RuntimeError('the user\\'s own folder')\n")
    (tmp_path / "script.py").write_text(
        "import codi_tracing as ct\n"
        "model = ct.load_codi('thought', device='cpu')\n"
        "table = ct.sweep(model, ct.load_pairs('arithmetic')[:2], sites=ct.layerwise(model))\n"
        "ct.heatmap(table)\n"
        "print(len(table), ct.read_table.__module__)\n"
    )
    assert "codi_tracing.analysis" in python("script.py", folder=tmp_path)
