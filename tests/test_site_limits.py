"""What a hostile coordinator sets in a task and a site does not take: paths, and more work than its limits allow."""

import os
import stat
from dataclasses import fields, replace

import pytest
from builders import lively_model, tiny_config, with_metadata

from fedskew.apps import make_client_app
from fedskew.config import load_config
from fedskew.config.load import preset_names
from fedskew.config.schema import Config, ConfigError, DataConfig, ModelConfig, RunConfig, TrainConfig
from fedskew.data.cache import make_private
from fedskew.data.samples import DataError
from fedskew.federation.grids import LocalGrid
from fedskew.federation.messages import Task, pack_task
from fedskew.federation.weights import to_record
from fedskew.learning.datasets import node_data
from fedskew.model.catalogue import dense_architecture
from fedskew.model.cost import macs, parameters
from fedskew.model.families.vit import ViTSpec
from fedskew.site.audit import read_entries
from fedskew.site.limits import FOR_PARTITIONS, FROM_TASK, Limits, exceeded, is_simulated, site_settings
from fedskew.site.mod import REFUSED
from fedskew.site.policy import Policy, PolicyError, PolicyRefusal, check_task
from fedskew.site.policy_file import parse_policy

# every setting that a task may carry into a site, spelt out: a new one is a decision, and no path is among them
TAKEN = {
    "data": {"fit", "validation", "split_by", "split_seed"},
    "model": {"drop_path"},
    "train": {field.name for field in fields(TrainConfig) if not field.name.startswith(("warm_start", "distil"))},
    "run": {"seed", "eval_batch_size"},
}
PATHS = {
    "data": {"dir", "manifest", "cache_dir", "source"},
    "model": {"pretrained", "pretrained_sha256"},
    "run": {"output_dir", "name"},
}
SECRET = "root:$6$private:19000"


@pytest.fixture
def ask(generated, tmp_path):
    """Send a task with this configuration to a site with this node configuration; returns the reply."""

    def send(config, *, arch=None, weights=None, **node_config):
        arch = arch or dense_architecture(config.model)
        weights = weights or lively_model(arch).state_dict()
        site = {"data-dir": str(generated), "name": "site-a"} | node_config
        grid = LocalGrid(make_client_app(), 1, node_configs={1: site})
        content = pack_task(Task(1, 9, arch, config), to_record(weights))
        message = grid.create_message(content, "train", 1, "group")
        return next(iter(grid.pull_messages(grid.push_messages([message]))))

    return send


@pytest.mark.parametrize("partition", [{}, {"partition-id": 0, "num-partitions": 2}], ids=["own data", "partition"])
@pytest.mark.parametrize("policy", [None, "min-examples: 1"])
def test_a_server_cannot_read_a_sites_files(ask, tmp_path, partition, policy):
    """The manifest of the task was opened at the site, and its first line came back in the error."""
    (tmp_path / "shadow").write_text(SECRET)
    node = dict(partition)
    if policy is not None:
        (tmp_path / "policy.yaml").write_text(policy)
        node |= {"policy": str(tmp_path / "policy.yaml"), "audit-log": str(tmp_path / "audit.jsonl")}
    attack = {"clients": "own", "manifest": str(tmp_path / "shadow")}
    reply = ask(tiny_config(data=attack | ({"clients": "partition"} if partition else {})), **node)
    assert not reply.has_error(), reply.error.reason


@pytest.mark.parametrize("partition", [{}, {"partition-id": 0, "num-partitions": 2}], ids=["own data", "partition"])
def test_a_server_cannot_choose_where_a_sites_images_are_decoded(ask, tmp_path, partition):
    theirs, ours = tmp_path / "public", tmp_path / "ours"
    reply = ask(tiny_config(data={"cache_dir": str(theirs)}), **partition, **{"cache-dir": str(ours)})
    assert not reply.has_error(), reply.error.reason
    assert not theirs.exists()
    (cache,) = (path for path in ours.iterdir() if path.is_dir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in (ours, cache)] == [0o700, 0o700]


def test_a_cache_that_others_could_read_is_taken_from_them(ask, tmp_path):
    """Caches of earlier versions were made with mode 0755."""
    config = tiny_config(data={"clients": "own"})
    assert not ask(config, **{"cache-dir": str(tmp_path)}).has_error()
    (cache,) = (path for path in tmp_path.iterdir() if path.is_dir())
    cache.chmod(0o755)
    assert not ask(config, **{"cache-dir": str(tmp_path)}).has_error()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_server_that_asks_for_another_size_each_time_does_not_fill_the_disk(generated, tmp_path):
    site, used = {"data-dir": str(generated), "cache-dir": str(tmp_path / "cache")}, []
    other = tmp_path / "cache" / "other"
    other.mkdir(parents=True)
    for size in (32, 36, 40, 44, 36):
        path = node_data(DataConfig(clients="own"), size, site).data.cached.path
        used = [*(known for known in used if known != path), path][-3:]  # the least recently used goes
        assert {found for found in path.parent.iterdir() if found.is_dir()} == {*used, other}
    assert len(used) == 3


def test_a_strangers_readable_cache_is_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)

    def forbidden(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(type(tmp_path), "chmod", forbidden)
    with pytest.raises(DataError, match=r"read by other accounts.*cache-dir="):
        make_private(tmp_path)


def test_the_list_of_settings_is_closed():
    """Whatever else a task sets has its default at the site: also what later versions add."""
    assert {section: set(names) for section, names in FROM_TASK.items()} == TAKEN
    assert not any(set(FROM_TASK.get(section, ())) & names for section, names in PATHS.items())
    hostile = Config(
        data=DataConfig(dir="/a", manifest="/b", cache_dir="/c", source="generated", alpha=9.0, validation=0.5),
        model=ModelConfig(pretrained="/d", name="swin_base_patch4_window12_384", drop_path=0.5),
        train=TrainConfig(local_epochs=3, warm_start_epochs=9, lr=0.5, rand_augment="rand-m5-n2-mstd0.5"),
        run=RunConfig(output_dir="/e", name="f", seed=4, eval_batch_size=7),
        preset="/g",
    )
    taken = site_settings(hostile)
    assert taken == Config(
        data=DataConfig(validation=0.5),
        model=ModelConfig(drop_path=0.5),
        train=TrainConfig(local_epochs=3, lr=0.5, rand_augment="rand-m5-n2-mstd0.5"),
        run=RunConfig(seed=4, eval_batch_size=7),
    )


def test_sites_that_share_a_data_set_take_its_division_and_no_path():
    config = Config(data=DataConfig(dir="/a", cache_dir="/c", test=0.3, open=0.2, partition="dirichlet", alpha=2.0))
    shared = site_settings(config, partitioned=True).data
    assert shared == DataConfig(test=0.3, open=0.2, partition="dirichlet", alpha=2.0)
    assert set(FOR_PARTITIONS) == {"clients", "test", "open", "partition", "alpha"}


@pytest.mark.parametrize(
    ("node", "simulated"),
    [
        ({"partition-id": 0, "num-partitions": 3}, True),
        ({"partition-id": 0, "num-partitions": 3, "data-dir": "/data"}, False),
        ({"partition-id": 0, "num-partitions": 3, "policy": "/p"}, False),
        ({"partition-id": 0, "num-partitions": 3, "audit-log": "/a"}, False),
        ({"partition-id": 0, "num-partitions": 3, "ledger": "/l"}, False),
        ({"data-dir": "/data"}, False),
        ({}, False),
    ],
)
def test_a_node_is_simulated_only_if_it_has_nothing_of_its_own(node, simulated):
    assert is_simulated(node) is simulated


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": {"local_epochs": 51}}, "train.local-epochs is 51, and this site's limit is 50"),
        ({"train": {"batch_size": 1025}}, "train.batch-size is 1025, and this site's limit is 1024"),
        ({"run": {"eval_batch_size": 4097}}, "run.eval-batch-size is 4097, and this site's limit is 4096"),
        ({"train": {"threads": 1024}}, f"train.threads is 1024, and this site's limit is {os.cpu_count()}"),
    ],
)
def test_work_beyond_the_default_limits_is_refused_without_a_policy_too(ask, monkeypatch, settings, said):
    monkeypatch.setattr("fedskew.federation.client.node_data", lambda *_, **__: pytest.fail("the data was touched"))
    reply = ask(tiny_config(**settings))
    assert reply.error.code == REFUSED
    assert said in reply.error.reason
    assert "raise the limit in its policy, as limits: {" in reply.error.reason


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("{local-epochs: 1, image-size: 31}", "the model's image size is 32, and this site's limit is 31"),
        ("{parameters: 1000}", "the model's number of parameters is "),
        ("{batch-size: 15}", "train.batch-size is 16, and this site's limit is 15"),
        ("{local-epochs: 1, batch-size: 16, image-size: 32, threads: 1}", ""),
    ],
)
def test_the_policy_sets_the_limits(ask, tmp_path, limits, said):
    (tmp_path / "policy.yaml").write_text(f"limits: {limits}")
    node = {"policy": str(tmp_path / "policy.yaml"), "audit-log": str(tmp_path / "audit.jsonl")}
    reply = ask(tiny_config(), **node)
    assert reply.has_error() == bool(said)
    assert said in (reply.error.reason if reply.has_error() else "")


def test_at_the_limit_is_within_it():
    limits = Limits(local_epochs=2, batch_size=8, eval_batch_size=9, threads=3, image_size=64, parameters=100, macs=7)
    config = tiny_config(train={"local_epochs": 2, "batch_size": 8, "threads": 3}, run={"eval_batch_size": 9})
    assert exceeded(config, 64, 100, 7, limits) == ""
    assert "parameters: 101}" in exceeded(config, 64, 101, 7, limits)
    assert "macs: 8}" in exceeded(config, 64, 100, 8, limits)
    assert "image-size: 65}" in exceeded(config, 65, 100, 7, limits)
    assert "threads: 3}" in exceeded(config, 64, 100, 7, replace(limits, threads=2))


def test_a_model_of_few_weights_whose_one_image_would_take_years_is_refused(ask, monkeypatch):
    """3.9 million weights in patches of one pixel: 7e15 multiply-accumulates an image, a million times Swin-T's."""
    monkeypatch.setattr("fedskew.federation.client.node_data", lambda *_, **__: pytest.fail("the data was touched"))
    costly = with_metadata(ViTSpec(512, 1, 8, 1, 512, 8, 100))
    assert parameters(costly) < Limits().parameters
    reply = ask(tiny_config(), arch=costly, weights=lively_model(dense_architecture(tiny_config().model)).state_dict())
    assert "multiply-accumulates for one image is 7037" in reply.error.reason
    assert "limits: {macs: 7037" in reply.error.reason


def test_the_models_of_all_presets_are_within_the_default_limits():
    for preset in preset_names():
        config = load_config(preset)
        arch = dense_architecture(config.model)
        assert exceeded(config, arch.image_size, parameters(arch), macs(arch).total, Limits()) == "", preset
    assert macs(dense_architecture(ModelConfig(name="swin_large_patch4_window12_384"))).total < Limits().macs


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("rand-n1000000000", "asks for 1000000000 operations an image, and 15 at most are done"),
        ("rand-" + "m5-" * 1000, "of 3005 characters, 100 at most are read"),
    ],
)
def test_a_task_cannot_ask_for_augmentation_that_never_ends(ask, policy, said):
    """A billion operations an image: 8 GB for the first draw alone."""
    assert said in ask(tiny_config(train={"rand_augment": policy})).error.reason


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"epochs": 3}, "limits: unknown key 'epochs'; did you mean 'local-epochs'?"),
        ({"local-epochs": 0}, "limits.local-epochs is 0, expected a whole number above 0"),
        ({"batch-size": "big"}, "limits.batch-size is 'big'"),
        ([1], "limits must hold keys and values"),
    ],
)
def test_limits_that_make_no_sense_are_named(limits, message):
    with pytest.raises(PolicyError) as error:
        parse_policy({"limits": limits}, "p.yaml")
    assert message in str(error.value)


def test_rounds_are_counted_over_all_runs(generated, tmp_path, monkeypatch):
    """A coordinator that starts a new run for every question got around max-rounds."""
    check_task(Policy(max_rounds_total=3), 1, answered_total=2)
    with pytest.raises(PolicyRefusal, match="max-rounds-total of 3"):
        check_task(Policy(max_rounds_total=3), 1, answered_total=3)
    (tmp_path / "policy.yaml").write_text("max-rounds: 5\nmax-rounds-total: 2")
    site = {"data-dir": str(generated), "name": "site-a", "policy": str(tmp_path / "policy.yaml"),
            "audit-log": str(tmp_path / "audit.jsonl")}  # fmt: skip
    arch = dense_architecture(tiny_config().model)
    weights, outcomes = lively_model(arch).state_dict(), []
    for run in (1, 2, 3):
        monkeypatch.setattr("fedskew.federation.grids.LOCAL_RUN_ID", run)
        grid = LocalGrid(make_client_app(), 1, node_configs={1: site})
        for kind in ("train", "evaluate"):
            content = pack_task(Task(1, 9, arch, tiny_config(data={"clients": "own"})), to_record(weights))
            message = grid.create_message(content, kind, 1, "group")
            reply = next(iter(grid.pull_messages(grid.push_messages([message]))))
            outcomes.append(reply.error.reason if reply.has_error() else "")
    assert {entry["run"] for entry in read_entries(tmp_path / "audit.jsonl")} == {1, 2, 3}
    assert outcomes[:4] == [""] * 4
    assert all("max-rounds-total of 2" in outcome for outcome in outcomes[4:])


def test_a_task_is_still_checked_by_the_schema(ask):
    with pytest.raises(ConfigError):
        tiny_config(train={"local_epochs": 10_000})
