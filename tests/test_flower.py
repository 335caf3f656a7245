"""Flower's private modules: reached through one file, and each name is where that file says."""

import ast
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedskew import flower

PACKAGE = Path(flower.__file__).parent
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")


def imports(file: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [(file, module, name) for file in FILES for module, name in imports(file)]


def test_no_other_file_imports_what_is_private():
    private = [
        f"{file.relative_to(PACKAGE)}: {module}"
        for file, module, _ in IMPORTS
        if module.partition(".")[0] == "flwr" and not module.startswith(PUBLIC)
    ]
    assert private == []


def test_every_name_is_used_and_every_use_is_a_name():
    used = {name for _, module, name in IMPORTS if module == "fedskew.flower"}
    assert used - {"FlowerError", "lacking"} == set(flower.PLACES)


@pytest.mark.parametrize("name", sorted(flower.PLACES))
def test_the_installed_release_has_it(name):
    module, attribute = flower.PLACES[name]
    found = import_module(module)
    assert getattr(flower, name) is (getattr(found, attribute) if attribute else found)


def test_what_a_release_lacks_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(flower, "PLACES", {"gone": ("flwr.app", "NoSuch"), "away": ("flwr.no_such_module", "x")})
    with pytest.raises(flower.FlowerError, match=r"^flwr [\d.]+ has no flwr\.app\.NoSuch, which fedskew needs"):
        flower.gone  # noqa: B018
    with pytest.raises(flower.FlowerError, match=r"has no flwr\.no_such_module\.x"):
        flower.away  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'never_heard_of'"):
        flower.never_heard_of  # noqa: B018


def test_the_first_untested_release_is_not_installed():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = [Requirement(line) for line in project["dependencies"] if line.startswith("flwr[")]
    assert version("flwr") in wanted.specifier
    assert "2" not in wanted.specifier, "there is an upper bound"
