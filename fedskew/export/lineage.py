"""Where an exported file comes from: what it says of itself beside the architecture."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fedskew
from fedskew.export.graph import OPSET
from fedskew.files import file_sha256
from fedskew.runs.lineage import code_hash

FORMAT = 1
TOOLS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")


def about_export(model: Path, run: str, precision: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What `EXPORT` of `tools.onnx_file` holds.

    Args:
        model: the model file that was exported.
        run: name of its run; empty where that is not known.
        found: parity, gate and the images that they were measured on.

    Returns:
        JSON-ready, without a date or a path: the same model gives the same bytes.
    """
    return {
        "format": FORMAT,
        "precision": precision,
        "opset": OPSET,
        "run": run,
        "model_sha256": file_sha256(model),
        "fedskew": fedskew.__version__,
        "code": code_hash(),
        "commit": _commit(),
        "versions": {name: version(name) for name in TOOLS},
        **found,
    }


@lru_cache(maxsize=1)
def _commit() -> str:
    """The commit of the checkout that exports; empty for an installation without one."""
    root = Path(fedskew.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:  # no git here: `code` tells the same
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
