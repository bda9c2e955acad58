"""The floors: who may import whom, read off the source; and what stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "analysis" / "notebooks"  # scripts on top of everything, like the front door, and no part of a floor
OURS = {"configs", "traces", "patching", "analysis", "codi"}
HEAVY = {"torch", "nnsight", "transformers", "peft", "pandas", "altair", "scipy"}
FLOORS = {
    "configs": {"configs"},
    "analysis": {"analysis"},
    "traces": {"traces", "configs"},
    "patching": {"patching", "traces", "configs", "analysis"},
}


def imports(path: Path, top_level: bool = False) -> set[str]:
    """The dotted names that a file imports; with `top_level`, only those that run when it is imported."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports relatively; name the floor"
            found.add(str(node.module))
        inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (top_level and (inside_function or for_types)):
            pending += ast.iter_child_nodes(node)
    return found


def files(floor: str) -> list[Path]:
    found = sorted(path for path in (ROOT / floor).rglob("*.py") if NOTEBOOKS not in path.parents)
    assert found, f"{floor} has no files"
    return found


def root(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("floor", FLOORS)
def test_each_floor_imports_only_the_floors_below_it(floor):
    for path in files(floor):
        above = {name for name in imports(path) if root(name) in OURS - FLOORS[floor]}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def test_analysis_never_imports_torch():
    for path in files("analysis"):
        assert not {"torch", "nnsight", "transformers", "peft"} & set(map(root, imports(path))), path


def test_nothing_imports_the_notebooks_and_they_draw_with_altair_alone():
    for path in [ROOT / "codi.py", *(path for floor in FLOORS for path in files(floor))]:
        assert not {name for name in imports(path) if name.startswith("analysis.notebooks")}, path
    for path in NOTEBOOKS.glob("*.py"):
        assert not {"matplotlib", "seaborn", "plotly", "tests"} & set(map(root, imports(path))), path


def test_patching_takes_the_table_and_its_numbers_from_analysis_and_draws_nothing():
    for path in files("patching"):
        used = {name for name in imports(path) if root(name) == "analysis"}
        assert used <= {f"analysis.{room}" for room in ("table", "effects", "summary", "folder")}, (
            f"{path.name}: {used}"
        )


def test_the_front_door_and_the_pairs_import_nothing_heavy_at_the_top():
    pairs = ("records", "pairs", "changes", "contrast", "describe", "store")
    made = ("chains", "words", "perturb", "operators", "generate", "matched")
    plan = ("recipes", "cells", "division", "readings", "anatomy", "at_hand", "layout", "costs", "plan", "plan_text")
    light = ("codi.py", "traces/text.py", "traces/gsm8k.py")
    light += tuple(f"patching/{module}.py" for module in (*pairs, *made, *plan))
    for name in light:
        assert not HEAVY & set(map(root, imports(ROOT / name, top_level=True))), name


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("analysis, configs", {"torch", "nnsight"}),
        ("codi", {"torch", "nnsight", "pandas", "altair"}),
        (
            "patching, codi_tracing.patching.pairs.summary, traces, codi_tracing.traces.text",
            {"torch", "nnsight", "pandas"},
        ),
        (
            "codi_tracing.patching.plan.text, codi_tracing.patching.runs.recipes",
            {"torch", "nnsight", "pandas", "transformers"},
        ),
    ],
)
def test_importing_what_is_light_does_not_load_what_is_heavy(modules, absent):
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not absent & set(loaded.split())


def test_help_loads_nothing_heavy_and_takes_less_than_half_a_second_of_a_core():
    code = (
        "import sys, time\n"
        "sys.argv = ['codi', '--help']\n"
        "import codi\n"
        "try:\n    codi.main()\n"
        "except SystemExit as end:\n    print(end.code, time.process_time(), *sys.modules)"
    )
    seconds = []
    for _ in range(3):  # the quickest: a busy machine takes longer
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        status, taken, *loaded = said.splitlines()[-1].split()
        assert status == "0"
        assert not (HEAVY | {"pydantic", "numpy", "pyarrow", "vl_convert", "safetensors", "tokenizers"}) & set(loaded)
        seconds.append(float(taken))
    assert min(seconds) < 0.5
