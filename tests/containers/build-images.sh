#!/bin/bash
# Build the two images for the tests: as a person would where an image registry answers, else on a base made here.
#   tests/containers/build-images.sh TAG
# Needs DOCKER_HOST. Uses PYTHON's pip for the wheels where the registry does not answer.
set -euo pipefail
tag=${1:?usage: build-images.sh TAG} root=$(cd "$(dirname "$0")/../.." && pwd)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cd "$root"
cp -r --parents .dockerignore LICENSE pyproject.toml clientapp.py serverapp.py conf fedskew plugins locks docker "$context"
arguments=()
if ! docker pull --quiet python:3.11.14-slim-bookworm 2> /dev/null; then
  base=fedskew/python:3.11-bookworm
  docker image inspect "$base" > /dev/null 2>&1 || docker/local-base.sh "$base"
  pins=$(tests/containers/torch-wheels.sh "$context/docker/wheels")  # torch==X+cpu torchvision==Y+cpu
  version() { grep -o "$1==[0-9.]*" <<< "$pins" | cut -d = -f 3; }
  sha256() { sha256sum "$context/docker/wheels/$1"-*.whl | cut -d ' ' -f 1; }
  arguments=(--build-arg "BASE_IMAGE=$base" --build-arg TORCH_INDEX= --build-arg "TORCH_VERSION=$(version torch)"
             --build-arg "TORCHVISION_VERSION=$(version torchvision)" --build-arg "TORCH_SHA256=$(sha256 torch)"
             --build-arg "TORCHVISION_SHA256=$(sha256 torchvision)")
fi
for target in proxy app; do
  name=fedskew; [ $target = proxy ] && name=fedskew-proxy
  docker build --file "$context/docker/Dockerfile" --target $target --tag "$name:$tag" "${arguments[@]}" "$context"
done
