"""Execute the notebooks: each script `NN_name.py` (jupytext, percent) becomes `NN_name.ipynb`, with what it shows.

    python analysis/notebooks/execute.py [NN_name.py ...]

The scripts are the source. What would differ without anything having changed is kept out of the saved copies: times,
the machine's versions, cells' random ids.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
SECONDS = 120  # the longest that a cell may take
QUIET = "ignore:IProgress"  # tqdm's remark that ipywidgets, which nothing here needs, is not installed


def scripts() -> list[Path]:
    """The tutorials, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def saved(script: Path) -> Path:
    """Where a script's executed copy is kept."""
    return script.with_suffix(".ipynb")


def read(script: Path) -> NotebookNode:
    """A script as a notebook without outputs; a cell's id is made from its source, so that it lasts as long."""
    notebook, taken = jupytext.read(script), set()
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        while name in taken:  # cells may be alike
            name = hashlib.sha256(name.encode()).hexdigest()[:12]
        taken.add(name)
        cell.id = name
    return notebook


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run all cells in the notebook's own folder, in this Python; an error in a cell is raised."""
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": QUIET})
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main(*names: str) -> None:
    """Execute the scripts named, or all, and write their copies."""
    for script in map(Path, names) if names else scripts():
        nbformat.write(execute(read(script)), saved(script))
        print(f"executed {script.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
