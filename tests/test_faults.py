"""What really happens: corrupt images, a full disk, a read-only folder, data that vanishes, nodes that misbehave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
from builders import tiny_config
from flwr.app import Array, ArrayRecord, MetricRecord

from fedskew.apps import make_client_app
from fedskew.demo.generator import generate
from fedskew.federation.grids import LocalGrid, StreamingGrid
from fedskew.federation.roll_call import RollCall
from fedskew.federation.server import FederatedRun
from fedskew.learning import datasets as prepare
from fedskew.runs.folder import RunFolder, RunFolderError
from fedskew.runs.resume import new_folder, open_checkpoint


def records(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def run(config, nodes=3, app=None, grid=None):
    """Run on an in-process grid and return the folder, finished or not."""
    return FederatedRun(grid or LocalGrid(app or make_client_app(), nodes), config).run()


@contextmanager
def small_disk(path, kilobytes):
    """A real file system of a given size."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_one_percent_corrupt_images_are_skipped_counted_and_named(tmp_path):
    data = generate(tmp_path / "data", images=200, seed=5)
    corrupt = sorted(data.rglob("*.jpg"))[::100]
    for path in corrupt:
        path.write_bytes(path.read_bytes()[:40])
    config = tiny_config(data={"source": "folder", "dir": str(data)}, run={"output_dir": str(tmp_path)})
    folder = run(config)
    skipped = json.loads((folder.path / "split.json").read_text())["skipped"]
    assert len(skipped) == len(corrupt) == 2
    assert all(any(path.stem in line for line in skipped) for path in corrupt)
    assert records(folder)[-1]["clients_ok"] == 3


def test_a_full_disk_leaves_the_round_before_and_resumes_when_there_is_space(tmp_path, generated):
    with small_disk(tmp_path / "disk", 2200) as disk:
        config = tiny_config(run={"output_dir": str(disk), "name": "run"}, federation={"rounds": 4})
        filler = disk / "filler"
        original = FederatedRun._after_round

        def fill_before_round_two(self, number, arrays):
            if number == 2:
                free = os.statvfs(disk)
                filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - 40_000))
            return original(self, number, arrays)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FederatedRun, "_after_round", fill_before_round_two)
            with pytest.raises(RunFolderError, match=r"round 2 could not be saved in .*run.*No space left.*resume="):
                run(config)
        filler.unlink()
        folder, checkpoint = open_checkpoint(disk / "run")
        assert checkpoint.round_number == 1
        finished = FederatedRun(LocalGrid(make_client_app(), 3), config, folder, checkpoint).run()
        undisturbed = run(tiny_config(run={"output_dir": str(tmp_path)}, federation={"rounds": 4}))
        assert [line["round"] for line in records(finished)] == [0, 1, 2, 3, 4]
        assert (finished.path / "model.safetensors").read_bytes() == (
            undisturbed.path / "model.safetensors"
        ).read_bytes()


def test_a_read_only_output_folder_is_named_before_anything_is_trained(tmp_path, generated):
    with small_disk(tmp_path / "disk", 100) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RunFolderError, match=r"disk.*Read-only.*run\.output-dir"):
            new_folder(tiny_config(run={"output_dir": str(disk)}))


def test_an_output_folder_under_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file.*run\.output-dir"):
        new_folder(tiny_config(run={"output_dir": str(tmp_path / "file")}))


def own_data_grid(app, folders):
    """Nodes that each have their own data folder and no partition, as in a deployment."""
    return LocalGrid(app, len(folders), node_configs={i + 1: {"data-dir": str(path)} for i, path in enumerate(folders)})


def test_a_data_folder_that_vanishes_in_mid_run_costs_only_its_node(tmp_path, generated):
    folders = [generate(tmp_path / f"site-{i}", images=60, seed=i) for i in range(3)]
    app = make_client_app()

    def vanish(message, context):
        prepare._open.cache_clear()  # in a deployment every message is a new process
        if message.content.config_records["config"]["server-round"] == 2 and folders[1].exists():
            shutil.rmtree(folders[1])
        return app(message, context)

    config = tiny_config(data={"clients": "own"}, run={"output_dir": str(tmp_path)})
    last = records(run(config, grid=own_data_grid(vanish, folders)))[-1]
    assert last["clients_ok"] == 2
    assert list(last["failed"]) == ["site-1"]
    assert "site-1" in last["failed"]["site-1"]
    assert "does not exist" in last["failed"]["site-1"]


def garbage(message, context, size=2 * 2**30):
    """A reply of two gigabytes. (Zero pages: they cost address space, not memory, until somebody reads them.)"""
    reply = make_client_app()(message, context)
    name, array = next(iter(reply.content["arrays"].items()))
    arrays = dict(reply.content["arrays"].items())
    arrays[name] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=bytes(size))
    reply.content["arrays"] = ArrayRecord(arrays)
    return reply


def huge_norm(message, context):
    """Finite, of the right shape, and a thousand times too large."""
    reply = make_client_app()(message, context)
    scaled = {name: Array(array.numpy() * np.float32(1000)) for name, array in reply.content["arrays"].items()}
    reply.content["arrays"] = ArrayRecord(scaled)
    return reply


def no_examples(message, context):
    reply = make_client_app()(message, context)
    metrics = dict(reply.content["metrics"].items()) | {"num-examples": 0}
    reply.content["metrics"] = MetricRecord(metrics)
    return reply


BAD = {
    "garbage": (garbage, "bytes, expected about", {}),
    "huge norm": (huge_norm, "x the median of the other nodes'", {"norm_bound": 5.0}),
    "zero examples": (no_examples, "expected a whole number from 1 to 268435456", {}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_node_is_set_aside_by_name_and_the_model_stays_finite(kind, tmp_path, generated):
    bad, reason, settings = BAD[kind]
    app = make_client_app()

    def client(message, context):
        return (bad if context.node_config["partition-id"] == 1 else app)(message, context)

    folder = run(tiny_config(federation={"rounds": 1, **settings}, run={"output_dir": str(tmp_path)}), app=client)
    last = records(folder)[-1]
    assert last["clients_ok"] == 2
    ((name, why),) = last["failed"].items()
    assert reason in why, why
    assert name in ("partition-1", "node 2")
    _, checkpoint = open_checkpoint(folder.path)
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.weights.values())


class SilentGrid(LocalGrid):
    """Node 2 takes its task and never answers."""

    def pull_messages(self, message_ids):
        silent = {i for i, message in self._pending.items() if message.metadata.dst_node_id == 2}
        return super().pull_messages([i for i in message_ids if i not in silent])


def test_a_node_that_never_answers_costs_the_grace_not_the_deadline(tmp_path, generated):
    federation = {"rounds": 1, "round_deadline": 600.0, "quorum": 2, "grace": 1.0}
    config = tiny_config(federation=federation, run={"output_dir": str(tmp_path)})
    last = records(run(config, grid=SilentGrid(make_client_app(), 3)))[-1]
    assert last["clients_ok"] == 2
    assert "no reply within" in last["failed"]["node 2"]
    assert last["seconds"] < 300


def test_the_grace_begins_with_the_answer_that_makes_the_quorum(tmp_path, generated, monkeypatch):
    good, hurried, accept = [], [], RollCall.accept

    def counted(self, *args, **options):
        name, answer = accept(self, *args, **options)
        good.extend([name] if answer else [])
        return name, answer

    monkeypatch.setattr(RollCall, "accept", counted)
    monkeypatch.setattr(StreamingGrid, "hurry", lambda _, seconds: hurried.append((len(good), seconds)))
    federation = {"rounds": 1, "quorum": 2, "grace": 7.0}
    run(tiny_config(federation=federation, run={"output_dir": str(tmp_path)}))
    assert hurried == [(2, 7.0), (3, 7.0)]


def test_rounds_below_the_quorum_keep_the_model_and_end_the_run_with_everything_saved(tmp_path, generated):
    federation = {"rounds": 3, "round_deadline": 1.0, "quorum": 3, "max_missed_rounds": 2}
    config = tiny_config(federation=federation, run={"output_dir": str(tmp_path)})
    folder = run(config, grid=SilentGrid(make_client_app(), 3))
    lines = records(folder)
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert all(line["kept_model"] for line in lines[1:])
    assert not any(line["selection"]["best"] for line in lines), "a round that made no model is not the best"
    summary = json.loads((folder.path / "summary.json").read_text())
    assert "quorum" in summary["stopped"]
    assert summary["rounds_below_quorum"] == 2
    folder, checkpoint = open_checkpoint(folder.path)
    healed = tiny_config(federation={**federation, "round_deadline": 600.0}, run={"output_dir": str(tmp_path)})
    again = FederatedRun(LocalGrid(make_client_app(), 3), healed, folder, checkpoint).run()
    assert records(again)[-1]["clients_ok"] == 3


@pytest.mark.parametrize("kind", ["median", "trimmed-mean", "krum"])
def test_flowers_robust_aggregations_withstand_a_huge_update(kind, tmp_path, generated):
    app = make_client_app()

    def client(message, context):
        return (huge_norm if context.node_config["partition-id"] == 1 else app)(message, context)

    federation = {"rounds": 1, "aggregation": kind, "trim": 0.34, "malicious_nodes": 1}
    folder = run(tiny_config(federation=federation, run={"output_dir": str(tmp_path)}), nodes=5, app=client)
    _, checkpoint = open_checkpoint(folder.path)
    assert max(float(tensor.abs().max()) for tensor in checkpoint.weights.values()) < 50
