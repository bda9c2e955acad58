"""The map of each package is complete."""

import pytest

from tests.support.places import ROOT

PACKAGES = ("analysis", "configs", "patching", "traces")


def test_patchings_readme_lists_every_module_in_its_folders_section():
    folder = ROOT / "patching"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    sections = {section.partition("`")[2].partition("/`")[0]: section for section in readme.split("\n## ")[2:]}
    for file in folder.glob("*/*.py"):
        if file.name != "__init__.py":
            assert f"| `{file.name}` |" in sections[file.parent.name], file


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_readme_names_each_of_its_modules_or_their_folder(package):
    folder = ROOT / package
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for file in folder.rglob("*.py"):
        inside = file.relative_to(folder)
        names = (f"`{inside}`", f"`{file.name}`", f"[{file.name}]", f"`{inside.parent}/`")
        if file.name not in ("__init__.py", "execute.py"):
            assert any(name in readme for name in names), inside
