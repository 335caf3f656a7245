#!/bin/bash
# Wheels of a CPU build of torch and of the torchvision beside it, where PyTorch's own index cannot be reached:
#   tests/containers/torch-wheels.sh FOLDER     prints both as requirements; exit code 3: none is at hand
# Uses PYTHON's pip and the places that its configuration names.
set -euo pipefail
folder=${1:?usage: torch-wheels.sh FOLDER} torch=2.13.0 torchvision=0.28.0 here=$(cd "$(dirname "$0")" && pwd)
if ! compgen -G "$folder/torch-$torch+cpu-*" > /dev/null; then
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-cache-dir --dest "$folder" "torch==$torch" >&2
  compgen -G "$folder/torch-$torch+cpu-*" > /dev/null || { echo "no CPU build of torch at hand" >&2; exit 3; }
fi
if ! compgen -G "$folder/torchvision-$torchvision+cpu-*" > /dev/null; then
  "${PYTHON:-python3}" "$here/torchvision_wheel.py" "$torchvision" "$folder" >&2
fi
echo "torch==$torch+cpu torchvision==$torchvision+cpu"
