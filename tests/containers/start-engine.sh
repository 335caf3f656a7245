#!/bin/bash
# Start a Docker engine for the tests where none runs: as root, with Debian's docker.io, or with one that is there.
#   eval "$(tests/containers/start-engine.sh DIRECTORY)"     prints DOCKER_HOST and FEDSKEW_DOCKERD_PID as assignments
# Stop it with: kill "$FEDSKEW_DOCKERD_PID" (empty if an engine was running already)
set -euo pipefail
if docker info > /dev/null 2>&1; then
  echo "export FEDSKEW_DOCKERD_PID="
  exit 0
fi
folder=$(mkdir -p "${1:?usage: start-engine.sh DIRECTORY}" && cd "$1" && pwd)
if ! command -v dockerd > /dev/null || ! command -v docker-compose > /dev/null || ! command -v debootstrap > /dev/null; then
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends docker.io docker-compose iptables debootstrap >&2
fi
socket=$folder/docker.sock
setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/dockerd.pid" \
  --host "unix://$socket" > "$folder/dockerd.log" 2>&1 < /dev/null &
pid=$!
works() {  # an engine that may not run containers here is none
  tar -C / -ch /bin/true $(ldd /bin/true | grep -o '/[^ ]*') 2> /dev/null | docker import - fedskew/probe > /dev/null \
    && docker run --rm fedskew/probe /bin/true
}
export DOCKER_HOST=unix://$socket
for _ in $(seq 60); do
  if docker info > /dev/null 2>&1; then
    works >&2 || break
    echo "export DOCKER_HOST=$DOCKER_HOST FEDSKEW_DOCKERD_PID=$pid"
    exit 0
  fi
  kill -0 "$pid" 2> /dev/null || break
  sleep 0.5
done
tail -n 5 "$folder/dockerd.log" >&2
kill "$pid" 2> /dev/null || true
exit 1
