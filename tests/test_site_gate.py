"""Policy and audit log at work in the client: what is forbidden does not leave, what leaves is recorded."""

import os

import numpy as np
import pytest
import torch
from builders import MICRO, lively_model, run_here, tiny_config
from flwr.app import Context, RecordDict

from fedskew.apps import make_client_app
from fedskew.config.schema import ModelConfig
from fedskew.data.samples import DataError
from fedskew.federation.grids import LOCAL_RUN_ID, LocalGrid
from fedskew.federation.messages import (
    ARRAYS,
    CLASS_COUNTS,
    CLASSES,
    METRICS,
    REPORT,
    Task,
    pack_reply,
    pack_task,
)
from fedskew.federation.weights import from_record, layout, to_record
from fedskew.methods.base import Work
from fedskew.model.catalogue import dense_architecture
from fedskew.model.fusion import build
from fedskew.model.layout import Part
from fedskew.site import gate
from fedskew.site.audit import read_entries
from fedskew.site.mod import REFUSED

HASH = 8 * "9f86d081"
ARCHITECTURE = dense_architecture(tiny_config().model)


@pytest.fixture
def site(generated, tmp_path):
    """A site with its own folder; call it with a policy to get a function that asks it for an answer."""
    arch = ARCHITECTURE
    arrays = lively_model(arch).state_dict()
    log = tmp_path / "audit.jsonl"

    def with_policy(text, **node_config):
        if text is not None:
            (tmp_path / "policy.yaml").write_text(text)
            node_config = {"policy": str(tmp_path / "policy.yaml"), "audit-log": str(log)} | node_config
        config = {"data-dir": str(generated), "name": "site-a"} | node_config
        grid = LocalGrid(make_client_app(), 1, node_configs={1: config})

        def ask(kind="train", number=1, **changes):
            task = Task(number, 9, arch, tiny_config(data={"clients": "own"}), **changes)
            message = grid.create_message(pack_task(task, to_record(arrays)), kind, 1, "group")
            return next(iter(grid.pull_messages(grid.push_messages([message]))))

        return ask

    return with_policy, log, arch, arrays


def norm_of(reply, arrays, without=(), arch=ARCHITECTURE):
    """2-norm of the update in a reply, which is all of the model but the tensors with these name prefixes."""
    wanted = {name: spec for name, spec in layout(arch).items() if not name.startswith(tuple(without))}
    sent = from_record(reply.content[ARRAYS], wanted)
    return sum(np.square(value.astype(float) - arrays[name].numpy()).sum() for name, value in sent.items()) ** 0.5


def test_without_a_policy_nothing_is_written_or_changed(site, own_homes):
    with_policy, log, _, arrays = site
    before = sorted(own_homes.rglob("*.jsonl"))
    reply = with_policy(None)()
    assert not reply.has_error()
    assert norm_of(reply, arrays) > 0.1
    assert not log.exists()
    assert sorted(own_homes.rglob("*.jsonl")) == before


def test_a_forbidden_run_is_refused_before_the_data_is_opened(site, monkeypatch):
    with_policy, log, _, _ = site
    monkeypatch.setattr("fedskew.federation.client.node_data", lambda *_: pytest.fail("the data was touched"))
    reply = with_policy("allowed-runs: [999]")()
    assert reply.error.code == REFUSED
    assert reply.error.reason == f"node site-a: site policy forbids: run {LOCAL_RUN_ID} is not among its allowed-runs"
    (entry,) = read_entries(log)
    assert (entry["outcome"], entry["kind"], entry["round"]) == ("refused", "train", 1)
    assert "allowed-runs" in entry["reason"]


def test_too_few_images_are_refused_before_training(site, monkeypatch):
    with_policy, _, _, _ = site
    monkeypatch.setattr("fedskew.learning.local.train", lambda *_, **__: pytest.fail("it trained"))
    assert "min-examples of 5000" in with_policy("min-examples: 5000")().error.reason


def test_an_app_that_is_not_pinned_is_refused(site, monkeypatch):
    with_policy, _, _, _ = site
    ask = with_policy(f"app-hashes: ['{HASH}']")
    assert "does not run from a Flower bundle is not among its app-hashes" in ask().error.reason
    monkeypatch.setattr(gate, "installed_app_hash", lambda _: HASH[:8])
    assert not ask().has_error()


def test_rounds_are_counted_in_the_log_not_believed(site):
    with_policy, log, _, _ = site
    ask = with_policy("max-rounds: 2")
    assert not ask(number=1).has_error()
    assert not ask("evaluate", number=1).has_error()  # has a count of its own
    ask = with_policy("max-rounds: 2")  # a new process: nothing but the log is left
    assert not ask(number=1).has_error()
    assert "has had its max-rounds of 2" in ask(number=1).error.reason
    assert [entry["outcome"] for entry in read_entries(log)] == ["answered"] * 3 + ["refused"]


def test_a_log_that_was_tampered_with_stops_a_counted_run(site):
    with_policy, log, _, _ = site
    ask = with_policy("max-rounds: 5")
    assert not ask().has_error()
    assert not ask().has_error()
    log.write_text(log.read_text().replace("answered", "refused ", 1))
    reply = ask()
    assert reply.error.reason == "node site-a: AuditError; the site's policy keeps the details in its own log"


def test_the_update_is_clipped_as_the_policy_says(site):
    with_policy, log, arch, arrays = site
    frozen = ("encoder.layers.0.", "encoder.patch_embed.")
    part = Part(without=frozen)
    reply = with_policy("clipping-norm: 0.01")(work=Work("skewness", part, part))
    assert norm_of(reply, arrays, without=frozen) == pytest.approx(0.01, rel=1e-2)
    (vector,) = reply.content[ARRAYS].values()
    assert 0 < vector.shape[0] < sum(tensor.numel() for tensor in arrays.values())
    (entry,) = read_entries(log)
    assert entry["clipping-norm"] == 0.01
    assert entry["values"] == vector.shape[0]
    assert entry["architecture"] == arch.digest


def test_the_bound_holds_to_the_last_digits_for_millions_of_values(tmp_path):
    """A norm taken in float32 over all values at once would let more pass: the large ones swallow the small ones."""
    arch = dense_architecture(ModelConfig(name="swin_small64_patch4_window4_64"))
    model = build(arch).state_dict()
    (tmp_path / "policy.yaml").write_text("clipping-norm: 0.1")
    site = {"policy": str(tmp_path / "policy.yaml"), "audit-log": str(tmp_path / "log")}
    task = Task(1, 9, arch, tiny_config())
    message = LocalGrid(make_client_app(), 1).create_message(pack_task(task, to_record(model)), "train", 1, "group")
    message.metadata.__dict__["_message_id"] = "1"
    scale = {name: 0.02 if name.startswith("classifier") else 1e-4 for name in model}
    trained = {name: tensor + scale[name] * torch.randn_like(tensor) for name, tensor in model.items()}
    reply = pack_reply(message, trained, {"num-examples": 9}, {})
    opened = gate.Gate(message, Context(1, 1, site, RecordDict(), {}))
    opened.admit(task)
    opened._protect(reply)
    assert norm_of(reply, model, arch=arch) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "told"), [("", False), ("report-notes: false", False), ("report-notes: true", True), (None, True)]
)
def test_what_is_wrong_with_the_data_is_told_only_where_the_policy_lets_notes_out(tmp_path, policy, told):
    """A line of a file that only root may read came back in an error of data."""
    site = {"audit-log": str(tmp_path / "log")}
    if policy is not None:
        (tmp_path / "policy.yaml").write_text(policy)
        site["policy"] = str(tmp_path / "policy.yaml")
    arch = dense_architecture(ModelConfig(name=MICRO))
    task = Task(1, 9, arch, tiny_config())
    record = to_record(build(arch).state_dict())
    message = LocalGrid(make_client_app(), 1).create_message(pack_task(task, record), "train", 1, "group")
    opened = gate.Gate(message, Context(1, 1, site, RecordDict(), {}))
    opened.admit(task)
    said = opened.refuse(DataError("patients.csv, line 3: 'Jane Doe' is no age"))
    assert ("Jane Doe" in said) == told
    assert said.startswith("DataError; the site's policy keeps the details") != told
    assert "Jane Doe" in read_entries(tmp_path / "log")[-1]["reason"], "the site itself is told in any case"


def test_noise_is_added_and_recorded(site):
    with_policy, log, _, arrays = site
    reply = with_policy("clipping-norm: 0.01\nnoise: {epsilon: 0.5, delta: 1e-5}")()
    (entry,) = read_entries(log)
    values = sum(tensor.numel() for tensor in arrays.values())
    assert norm_of(reply, arrays) == pytest.approx(entry["noise-deviation"] * values**0.5, rel=0.05)
    assert entry["sha256"] == gate.arrays_sha256(reply.content[ARRAYS])


def test_metrics_stay_if_the_policy_says_so(site):
    with_policy, _, _, _ = site
    ask = with_policy("report-metrics: false")
    assert set(ask().content[METRICS]) == {"num-examples", "steps", "seconds", "seconds-train"}
    assert "report-metrics is false" in ask("evaluate").error.reason


def test_class_counts_leave_only_if_the_policy_says_so(site):
    with_policy, _, _, _ = site
    assert CLASS_COUNTS not in with_policy("min-examples: 1")().content[REPORT]
    reply = with_policy("report-class-counts: true")()
    counts = dict(zip(reply.content[REPORT][CLASSES], reply.content[REPORT][CLASS_COUNTS], strict=True))
    assert sum(counts.values()) == reply.content[METRICS]["num-examples"]
    assert "nv" in counts


def test_the_run_records_the_class_counts_of_the_sites_that_tell_them(generated, tmp_path):
    (tmp_path / "open.yaml").write_text("report-class-counts: true")
    nodes = {1: {"name": "open", "policy": str(tmp_path / "open.yaml")}, 2: {"name": "closed"}}
    nodes = {
        node: {"data-dir": str(generated), "audit-log": str(tmp_path / "log")} | more for node, more in nodes.items()
    }
    config = tiny_config(data={"clients": "own"}, federation={"rounds": 1}, run={"output_dir": str(tmp_path)})
    last = run_here(config, grid=LocalGrid(make_client_app(), 2, node_configs=nodes)).records()[-1]
    assert set(last["class_counts"]) == {"open"}
    assert sum(last["class_counts"]["open"].values()) == last["nodes"]["open"]["num-examples"]


@pytest.fixture
def spoilt(generated, tmp_path):
    """A data folder with one broken image; the text that must not leave is its id."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for item in generated.iterdir():
        (folder / item.name).symlink_to(item)
    part = folder / "HAM10000_images_part_1"
    part.unlink()
    part.mkdir()
    images = sorted((generated / part.name).iterdir())
    for image in images[1:]:
        os.link(image, part / image.name)
    (part / images[0].name).write_bytes(b"no image")
    return folder, images[0].stem


def test_names_of_unreadable_images_stay_unless_the_policy_lets_them_out(site, spoilt):
    with_policy, _, _, _ = site
    folder, name = spoilt
    told = {key: with_policy(text, **{"data-dir": str(folder)})().content[REPORT]["notes"]
            for key, text in (("kept", ""), ("told", "report-notes: true"), ("none", None))}  # fmt: skip
    assert told["kept"] == ["1 notes on the data; the site's policy keeps them"]
    assert name in told["told"][0]
    assert name in told["none"][0]


def test_an_accident_tells_no_details(site, monkeypatch, tmp_path):
    with_policy, log, _, _ = site
    secret = OSError("disk error in /data/patient-4711.jpg")

    def fail(*_, **__):
        raise secret

    monkeypatch.setattr("fedskew.federation.client.node_data", fail)
    reply = with_policy("")()
    assert "4711" not in reply.error.reason
    assert "OSError" in reply.error.reason
    (entry,) = read_entries(log)
    assert entry["outcome"] == "failed"
    assert "4711" in entry["reason"]
    with pytest.raises(OSError, match="4711"):  # without a policy it is Flower's affair, as before
        with_policy(None)()


def test_an_unreadable_policy_forbids_everything(site):
    with_policy, log, _, _ = site
    reply = with_policy("max-round: 3")()
    assert reply.error.reason == "node site-a: PolicyError; the site's policy keeps the details in its own log"
    assert "did you mean 'max-rounds'" in read_entries(log)[0]["reason"]


def test_nothing_leaves_that_cannot_be_recorded(site, tmp_path):
    with_policy, log, _, _ = site
    log.mkdir()
    reply = with_policy("")()
    assert reply.error.reason == "node site-a: AuditError; the site's policy keeps the details in its own log"


def test_the_log_lies_in_fedskews_home_unless_the_node_says_otherwise(site, own_homes):
    with_policy, log, _, _ = site
    assert not with_policy("", **{"audit-log": ""})().has_error()
    assert not log.exists()
    assert len(read_entries(own_homes / "audit" / "site-a.jsonl")) == 1


def test_a_whole_run_with_policies(generated, tmp_path):
    """Three sites, pruning between the rounds, clipping at each: shapes change and the run goes on."""
    configs = {}
    for node in (1, 2, 3):
        folder = tmp_path / f"site-{node}"
        folder.mkdir()
        limit = "max-rounds: 1\n" if node == 3 else ""
        (folder / "policy.yaml").write_text(f"{limit}clipping-norm: 0.5\n")
        configs[node] = {"data-dir": str(generated), "name": f"site-{node}", "policy": str(folder / "policy.yaml"),
                         "audit-log": str(folder / "audit.jsonl")}  # fmt: skip
    config = tiny_config(data={"clients": "own"}, run={"output_dir": str(tmp_path / "runs")})
    records = run_here(config, grid=LocalGrid(make_client_app(), 3, node_configs=configs)).records()
    assert [record["clients_failed"] for record in records] == [0, 0, 1]
    first, last = read_entries(tmp_path / "site-1" / "audit.jsonl")
    assert first["architecture"] != last["architecture"]
    assert first["bytes"] > last["bytes"]
    assert "max-rounds" in read_entries(tmp_path / "site-3" / "audit.jsonl")[1]["reason"]
