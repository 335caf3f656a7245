"""Measure on the wire what a whole run costs, dense against pruned, and how long its phases take.

    python tests/deployment/measure.py FOLDER --sites 2

Real SuperLink, nginx and SuperNodes (cluster.py), TLS, network namespaces where root allows. Model, rounds and pruning
schedule are those of a preset. Bytes are nginx's count of requests and answers. Only the traffic is asked for: random
weights, a few generated images and one epoch a site and round.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deployment.cluster import Cluster
from deployment.wire import read_wire, traffic

SMALL = (
    "train.local-epochs=1 train.batch-size=8 train.threads=1 run.threads=1 prune.batch-size=8 federation.quorum=1 "
    "federation.aggregation=mean "
    "federation.join-deadline=120 federation.round-deadline=3600 federation.grace=0"
)


def measure(cluster: Cluster, name: str, preset: str, settings: str) -> dict:
    """Run once; traffic of all sites, seconds a round, and the SuperLink's CPU seconds."""
    superlink = psutil.Process(cluster.jobs["superlink"].process.pid)
    start, before = time.time(), superlink.cpu_times()
    job = cluster.run(settings, name=name, preset=preset, base=SMALL)
    assert job.wait(7200) == 0, job.tail()
    spent = superlink.cpu_times()
    sums = traffic(read_wire(cluster.wire_log, start), cluster.folder / "pki" / "coordinator")
    records = cluster.records(name)
    return {
        "name": name,
        "sites": len(cluster.sites),
        "rounds": len(records) - 1,
        "up": sum(site.up for site in sums.values()),
        "down": sum(site.down for site in sums.values()),
        "payload up": sum(record["bytes_up"] for record in records),
        "payload down": sum(record["bytes_down"] for record in records),
        "requests": sum(site.requests for site in sums.values()),
        "seconds": round(time.time() - start, 1),
        "seconds a round": [round(record["seconds"], 1) for record in records[1:]],
        "parameters": [record["parameters"] for record in records],
        "CPU seconds of the SuperLink": round(spent.user + spent.system - before.user - before.system, 1),
        "ok": [record["clients_ok"] for record in records[1:]],
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="hospitals")
    parser.add_argument("--set", default="", help="more settings, such as model.name=… or federation.rounds=…")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--only", choices=("dense", "pruned"), default=None)
    chosen = parser.parse_args()
    with Cluster(chosen.folder, sites=chosen.sites, images=chosen.images) as cluster:
        cluster.start()
        for name, more in (("dense", "prune.criterion=none"), ("pruned", "prune.criterion=skewness")):
            if chosen.only in (None, name):
                settings = f"federation.min-nodes={chosen.sites} {chosen.set} {more}"
                print(json.dumps(measure(cluster, name, chosen.preset, settings)), flush=True)


if __name__ == "__main__":
    main()
