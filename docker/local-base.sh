#!/bin/bash
# Make a base image without a registry of images: a Debian tree with Python, imported under a name for BASE_IMAGE.
#   sudo docker/local-base.sh fedskew/python:3.11-bookworm
# Needs debootstrap, a Debian mirror (MIRROR) and a running Docker engine. PACKAGES: other packages than Python's.
# Certificate authorities that this machine has been given in /usr/local/share/ca-certificates (of a company's proxy, say) are trusted in the image as well.
set -euo pipefail
name=${1:?usage: local-base.sh NAME:TAG}
mirror=${MIRROR:-http://deb.debian.org/debian}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
debootstrap --variant=minbase --include="${PACKAGES:-python3,python3-venv,ca-certificates}" bookworm "$tree" "$mirror"
if compgen -G '/usr/local/share/ca-certificates/*.crt' > /dev/null; then
  cp /usr/local/share/ca-certificates/*.crt "$tree/usr/local/share/ca-certificates/"
  chroot "$tree" update-ca-certificates
fi
rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
# `python`, as the official images have it
[ ! -e "$tree/usr/bin/python3" ] || ln -sf python3 "$tree/usr/bin/python"
tar -C "$tree" -c . | docker import --change 'CMD ["python3"]' - "$name"
