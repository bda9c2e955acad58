"""The structure of the code, read from its source: imports, unique names, sizes, and modules that load quickly."""

import ast
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from tests.support.places import ROOT
from tests.support.source import (
    HEAVY,
    PACKAGES,
    SCRIPTS,
    distributions,
    functions,
    imports,
    modules,
    nodes,
    normalised_body,
    ours,
    public_names,
    room,
    tree,
)

PACKAGES_BELOW = {
    "configs": {"configs"},
    "traces": {"traces", "configs"},
    "analysis": {"analysis", "configs"},
    "patching": {"patching", "traces", "analysis", "configs"},
    "codi_tracing": set(PACKAGES),
}
# Rooms of a package from the lowest to the highest; rooms on one level do not import each other.
LEVELS = {
    "patching": [["pairs"], ["pair_making", "interventions"], ["engine"], ["runs"], ["plan"]],
    "analysis": [["table"], ["io", "rows"], ["statistics"], ["figures"], ["experiments", "lens"], ["report"]],
    "traces": [["model"], ["remote"], ["loop"], ["lens", "evaluate"]],
}
TORCH = {"torch", "nnsight", "transformers", "peft"}
# Modules outside analysis that read or write files; all others receive their data as arguments.
READERS_AND_WRITERS = {
    "configs": {"configs.files", "configs.load", "configs.model_shapes", "configs.schema"},
    "traces": {
        "traces.gsm8k",
        "traces.records",
        "traces.convert.convert",
        "traces.convert.upstream",
        "traces.model.weight_files",
        "traces.model.checkpoint",
        "traces.model.integrity",
        "traces.model.loading",
        "traces.model.model_files",
        "traces.remote.submitted_jobs",
        "traces.training.train",
    },
    "patching": {
        "patching.provenance",
        "patching.lens.dump",
        "patching.lens.tables",
        "patching.pairs.json_records",
        "patching.pairs.pair",
        "patching.pair_making.arithmetic",
        "patching.pair_making.gsm8k",
        "patching.plan.inputs",
        "patching.runs.assemble",
        "patching.runs.batch_files",
        "patching.runs.experiment",
        "patching.runs.lock",
        "patching.runs.run_folder",
    },
}
FILE_CALLS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "rmdir", "touch", "iterdir",
    "glob", "rglob", "exists", "is_file", "is_dir", "stat", "rmtree", "copytree", "copyfile", "mkdtemp", "mkstemp",
    "read_parquet", "to_parquet", "read_csv", "to_csv", "safe_open", "save_file", "load_file", "save_pretrained",
    "write_json", "write_table", "read_table", "read_file", "read_utf8", "parse_parquet",
}  # fmt: skip
LIMITS = {"lines of a function": 60, "lines of a file": 300, "complexity": 15, "modules of a folder": 12}
NAMES_THAT_STAND_TWICE = {"sweep"}  # the function of the public API, and the recipe that has its experiment's name


def of_package(package: str) -> list[str]:
    return [module for module in modules() if module.partition(".")[0] == package]


# Who imports whom.


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_imports_only_itself_and_the_packages_below_it(package):
    above = {
        (module, name)
        for module in of_package(package)
        for name in ours(modules()[module])
        if name.partition(".")[0] not in PACKAGES_BELOW[package]
    }
    assert above == set()


def test_analysis_imports_from_configs_the_vocabulary_and_the_reading_of_files_and_never_torch():
    for module in of_package("analysis"):
        path = modules()[module]
        assert {name for name in ours(path) if name.startswith("configs")} <= {"configs.vocabulary", "configs.files"}, (
            module
        )
        assert not TORCH & distributions(path), module


@pytest.mark.parametrize("package", LEVELS)
def test_each_room_imports_only_itself_and_the_rooms_below_it(package):
    levels = {f"{package}.{name}": level for level, names in enumerate(LEVELS[package]) for name in names}
    wrong = {
        (module, name)
        for module in of_package(package)
        for name in ours(modules()[module])
        if room(module) in levels and room(name) in levels and room(name) != room(module)
        if levels[room(name)] >= levels[room(module)]
    }
    assert wrong == set()


def test_no_rooms_import_each_other_in_a_circle():
    below = defaultdict(set)
    for module, path in modules().items():
        below[room(module)] |= {room(name) for name in ours(path)} - {room(module)}
    remaining = set(below)
    while free := {
        name
        for name in remaining
        if not below[name] & remaining or not any(name in below[other] for other in remaining - {name})
    }:
        remaining -= free
    assert {name: below[name] & remaining for name in remaining} == {}


def test_no_experiment_imports_another():
    experiments = [module for module in modules() if module.startswith("analysis.experiments.")]
    assert experiments
    for module in experiments:
        assert not (ours(modules()[module]) & set(experiments)) - {module}, module


def test_patching_takes_from_analysis_the_table_its_statistics_and_its_files_and_draws_nothing():
    files = tuple(
        f"analysis.io.{name}"
        for name in ("atomic", "run_folder", "summary_files", "table_file", "text", "written_files")
    )
    allowed = ("analysis.table", "analysis.rows", "analysis.statistics", *files)
    for module in of_package("patching"):
        used = {name for name in ours(modules()[module]) if name.startswith("analysis")}
        assert all(name.startswith(allowed) for name in used), (module, used)


def test_nothing_imports_the_scripts_and_notebooks_draw_with_altair_alone():
    for module, path in modules().items():
        scripts = ("codi_tracing.analysis.notebooks", "codi_tracing.traces.embedded")
        assert not {name for name in imports(path) if name.startswith(scripts)}, module
    notebooks = sorted(SCRIPTS[0].glob("*.py"))
    assert notebooks
    for path in notebooks:
        assert not {"matplotlib", "seaborn", "plotly", "tests"} & distributions(path), path


def test_a_sub_package_exports_nothing():
    for module, path in modules().items():
        if path.name == "__init__.py" and module != "codi_tracing":
            body = tree(path).body
            assert len(body) <= 1, module
            assert not body or ast.get_docstring(tree(path)), module


def test_no_module_imports_a_private_name_of_another():
    def private(name: str) -> bool:
        return name.startswith("_") and not name.endswith("__")

    found = set()
    for module, path in modules().items():
        found |= {
            (module, name)
            for name in imports(path)
            if name.startswith("codi_tracing.") and private(name.rpartition(".")[2])
        }
        imported = {
            name.rpartition(".")[2] for name in imports(path) if name.removeprefix("codi_tracing.") in modules()
        }
        found |= {
            (module, ast.unparse(node))
            for node in nodes(path)
            if isinstance(node, ast.Attribute) and private(node.attr)
            if isinstance(node.value, ast.Name) and node.value.id in imported
        }
    assert found == set()


# Who touches files.


def file_calls(module: str) -> set[str]:
    """The calls of a module that read, write, list or make files."""
    calls = {node.func for node in nodes(modules()[module]) if isinstance(node, ast.Call)}
    names = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    return FILE_CALLS & (names | {call.id for call in calls if isinstance(call, ast.Name)})


def test_in_analysis_only_io_and_report_touch_files():
    for module in of_package("analysis"):
        if not module.startswith(("analysis.io.", "analysis.report.")):
            assert not file_calls(module), (module, file_calls(module))


@pytest.mark.parametrize("package", READERS_AND_WRITERS)
def test_elsewhere_files_are_touched_by_the_readers_and_writers_listed_here(package):
    assert {module for module in of_package(package) if file_calls(module)} <= READERS_AND_WRITERS[package]


# Names and repetition.


def commands(module: str) -> set[str]:
    """Functions that are commands of the front door: each has the name of the function that it calls."""
    if not module.startswith("codi_tracing.cli."):
        return set()
    return {
        function.name
        for function in functions(modules()[module])
        if any(ast.unparse(decorator).partition("(")[0].endswith(".command") for decorator in function.decorator_list)
    }


def test_no_public_name_stands_in_two_modules():
    places = defaultdict(set)
    for module, path in modules().items():
        for name in set(public_names(path)) - commands(module) - NAMES_THAT_STAND_TWICE:
            places[name].add(module)
    assert {name: sorted(found) for name, found in places.items() if len(found) > 1} == {}


def test_no_function_body_is_repeated():
    places = defaultdict(list)
    for module, path in modules().items():
        for function in functions(path):
            statements, body = normalised_body(function)
            if statements >= 4:
                places[body].append(f"{module}.{function.name}")
    assert [names for names in places.values() if len(names) > 1] == []


# Sizes.


def test_a_folder_has_at_most_twelve_modules():
    count = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    assert {str(folder): n for folder, n in count.items() if n > LIMITS["modules of a folder"]} == {}


def test_no_file_and_no_function_is_long():
    for module, path in modules().items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LIMITS["lines of a file"], module
    long = {
        f"{module}.{function.name}": lines
        for module, path in modules().items()
        for function in functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > LIMITS["lines of a function"]
    }
    assert long == {}


def test_no_function_is_complex():
    limit = f"lint.mccabe.max-complexity={LIMITS['complexity']}"
    command = [sys.executable, "-m", "ruff", "check", "--select", "C901", "--config", limit, "--output-format=concise"]
    found = subprocess.run([*command, *map(str, modules().values())], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout


# What loads quickly.

LIGHT = (
    "codi_tracing.cli", "traces.text", "traces.records", "traces.gsm8k", "patching.pairs.json_records",
    "patching.pairs.pair", "patching.pairs.validity", "patching.pairs.summary", "patching.pair_making.gsm8k_chains",
    "patching.pair_making.number_words", "patching.pair_making.number_edits", "patching.pair_making.word_edits",
    "patching.pair_making.gsm8k", "patching.pair_making.matching", "patching.runs.run_folder", "patching.runs.recipes",
    "patching.interventions.cells", "patching.engine.partition", "patching.engine.model_size",
    "patching.answer_metrics", "patching.plan",
)  # fmt: skip


@pytest.mark.parametrize("light", LIGHT)
def test_the_front_door_pairs_and_plans_import_nothing_heavy_at_the_top(light):
    found = [module for module in modules() if module == light or module.startswith(f"{light}.")]
    assert found
    for module in found:
        assert not HEAVY & distributions(modules()[module], top_level=True), module


def loaded_by(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        (["analysis", "configs"], {"torch", "nnsight"}),
        ([""], {"torch", "nnsight", "pandas", "altair"}),
        (["patching.pairs.summary", "traces.text"], {"torch", "nnsight", "pandas"}),
        (["patching.plan.text", "patching.runs.recipes"], {"torch", "nnsight", "pandas", "transformers"}),
    ],
    ids=lambda value: " ".join(value) or "codi_tracing" if isinstance(value, list) else None,
)
def test_importing_a_light_module_loads_no_heavy_one(names, absent):
    imported = ", ".join(f"codi_tracing.{name}".rstrip(".") for name in names)
    assert not absent & set(loaded_by(f"import sys, {imported}; print(*sys.modules)").split())


def test_help_loads_nothing_heavy_and_takes_less_than_half_a_second_of_processor_time():
    code = (
        "import sys, time\n"
        "sys.argv = ['codi', '--help']\n"
        "from codi_tracing.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, time.process_time(), *sys.modules)"
    )
    seconds = []
    for _ in range(3):  # the fastest of three: a busy machine is slower
        status, taken, *loaded = loaded_by(code).splitlines()[-1].split()
        assert status == "0"
        assert not (HEAVY | {"pydantic", "numpy", "pyarrow", "vl_convert", "safetensors", "tokenizers"}) & set(loaded)
        seconds.append(float(taken))
    assert min(seconds) < 0.5
