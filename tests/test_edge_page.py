"""docs/edge.md is what its template and the committed records give."""

import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def build():
    """docs/edge/build.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("build_edge", DOCS / "edge" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_current(build):
    made = build.page((DOCS / "edge" / "template.md").read_text(encoding="utf-8"), build.RECORDS)
    assert (DOCS / "edge.md").read_text(encoding="utf-8") == made, "run: make results"


def test_what_directives_give(build, tmp_path):
    rows = [{"shape": "dense", "form": "torch fp32", "ratio": 1.25}, {"shape": "dense", "form": "onnx", "ratio": 1.0}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows}))
    given = build.page("a {{value x ratio .1f form='torch fp32' shape=dense}} b", tmp_path)
    assert given == f"{build.NOTICE}a 1.2 b"
    shown = build.page("{{quotient x ratio .2f shape=dense 'form=torch fp32' / form=onnx}}", tmp_path)
    assert shown == f"{build.NOTICE}1.25"
    for directive, words in (
        ("value x ratio .1f shape=dense", "2 rows have"),
        ("value y ratio .1f", "FileNotFound"),
        ("tabel x", "expected one of models, ways"),
        ("value x rato .1f form=onnx", "rato"),
    ):
        with pytest.raises(build.PageError, match=words):
            build.page(f"{{{{{directive}}}}}", tmp_path)
