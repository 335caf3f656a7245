"""Every error that the package raises on purpose has one base, by which the command line tells it from a fault."""

import importlib
import pkgutil

import pytest

import fedskew
from fedskew.errors import FedskewError, is_ours
from fedskew.runs.folder import RunFolderError


def exceptions() -> dict[str, type[BaseException]]:
    """All exception classes that modules of the package define, by their full name."""
    names = [module.name for module in pkgutil.walk_packages(fedskew.__path__, "fedskew.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith(".__main__")]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.__name__
    }


def test_every_exception_of_the_package_has_the_one_base():
    found = exceptions()
    assert {"fedskew.config.option.ConfigError", "fedskew.federation.checks.BadReply"} <= found.keys()
    assert [name for name, kind in found.items() if not issubclass(kind, FedskewError)] == []


def test_every_exception_is_one_that_callers_of_a_library_know():
    kinds = {name: kind for name, kind in exceptions().items() if kind is not FedskewError}
    assert [name for name, kind in kinds.items() if not issubclass(kind, ValueError | RuntimeError)] == []


@pytest.mark.parametrize(
    ("error", "ours"),
    [(RunFolderError("x"), True), (ValueError("x"), False), (RuntimeError("x"), False), (KeyboardInterrupt(), False),
     (None, False)],
    ids=repr,
)  # fmt: skip
def test_only_what_a_person_can_mend_is_ours(error, ours):
    assert is_ours(error) is ours
