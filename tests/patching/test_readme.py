"""The map of the folder is complete."""

from tests.support.places import ROOT


def test_the_readme_lists_every_module_in_its_folders_section():
    folder = ROOT / "patching"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    sections = {section.partition("`")[2].partition("/`")[0]: section for section in readme.split("\n## ")[2:]}
    for file in folder.glob("*/*.py"):
        if file.name != "__init__.py":
            assert f"| `{file.name}` |" in sections[file.parent.name], file
    assert all(f"| `{file.name}` |" in readme for file in folder.glob("*.py") if file.name != "__init__.py")
