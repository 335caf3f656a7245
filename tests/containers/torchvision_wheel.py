"""Make a torchvision wheel that imports beside a CPU-only torch, where PyTorch's own index cannot be reached.

    python tests/containers/torchvision_wheel.py 0.28.0 WHEELS     writes torchvision-0.28.0+cpu-….whl

PyPI's torchvision is built for CUDA: beside torch+cpu its C++ part does not load, and it stops at two operators that it
wants to describe. timm needs its Python part only, so declaring the two is enough. For test images: real ones take both
wheels from PyTorch's index.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DECLARE = """
import torch as _torch
for _name in ("nms", "qnms"):
    _torch.library.define("torchvision::" + _name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
PATCHED = "torchvision/_meta_registrations.py"


def make_wheel(version: str, target: Path) -> Path:
    """Download PyPI's wheel, declare the operators, call it `version+cpu`."""
    with tempfile.TemporaryDirectory() as scratch:
        fetch = [
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-cache-dir",
            "--dest",
            scratch,
            f"torchvision=={version}",
        ]
        subprocess.run([sys.executable, "-m", *fetch], check=True)
        (wheel,) = Path(scratch).glob("torchvision-*.whl")
        local = f"{version}+cpu"
        made = target / wheel.name.replace(version, local, 1)
        old, new = f"torchvision-{version}.dist-info/", f"torchvision-{local}.dist-info/"
        record = []
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
            for name in source.namelist():
                content = source.read(name)
                if name == PATCHED:
                    content = DECLARE.encode() + content
                elif name == f"{old}METADATA":
                    content = content.replace(f"\nVersion: {version}\n".encode(), f"\nVersion: {local}\n".encode())
                name = name.replace(old, new)
                if not name.endswith("/RECORD"):
                    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                    record.append(f"{name},sha256={digest},{len(content)}")
                    _write(out, name, content)
            _write(out, f"{new}RECORD", ("\n".join([*record, f"{new}RECORD,,"]) + "\n").encode())
    return made


def _write(out: zipfile.ZipFile, name: str, content: bytes) -> None:
    """With a fixed date: the same wheel every time, so that the image's layers are found again."""
    out.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 1)


if __name__ == "__main__":
    print(make_wheel(sys.argv[1], Path(sys.argv[2])))
