"""What CONTRIBUTING.md says of the size of files and functions."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("fedskew", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
FILE, FUNCTION = 300, 35  # lines; of a function's body without its docstring


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    described = ast.get_docstring(function) is not None
    first = function.body[1] if described and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or 0) - first.lineno + 1


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_a_function_is_measured_without_its_docstring():
    text = "def f(\n  a,\n):\n  'one'\n  x = a\n  return x\n"
    assert length(ast.parse(text).body[0]) == 2
    assert length(ast.parse("def f():\n  return 1\n").body[0]) == 1


def test_no_file_is_longer_than_what_can_be_read_in_one_go():
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > FILE} == {}


def test_no_function_is_longer_than_a_screen():
    found = {f"{path.relative_to(ROOT)}: {f.name}": length(f) for path in FILES for f in functions(path)}
    assert {name: count for name, count in found.items() if count > FUNCTION} == {}
