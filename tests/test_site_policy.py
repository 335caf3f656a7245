"""A site's policy: what it forbids is refused by name, before data is touched and before anything leaves."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedskew.federation.messages import ARRAYS
from fedskew.site.policy import Noise, Policy, PolicyError, PolicyRefusal, check_task, installed_app_hash
from fedskew.site.policy_file import load_policy, parse_policy
from fedskew.site.privacy import PrivacyError, protect

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


NOISED, QUIET = {"clipping-norm": 1, "noise": {"multiplier": 1, "delta": 1e-5}}, {"report-metrics": False}


# --- the file ---------------------------------------------------------------------------------------------------


def test_every_key_is_read(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(
        f"allowed-runs: [12, '18446744073709551615']\napp-hashes: ['sha256:{HASH}']\nmin-examples: 100\nmax-rounds: 5\n"
        "max-task-minutes: 90\n"
        "clipping-norm: 1.5\nnoise: {sensitivity: 2.5, epsilon: 0.5, delta: 1e-5}\n"
        "report-metrics: false\nreport-class-counts: true\nreport-notes: true\n"
    )
    assert load_policy(file) == Policy(
        allowed_runs=frozenset({12, 2**64 - 1}),
        app_hashes=frozenset({HASH}),
        min_examples=100,
        max_rounds=5,
        max_task_minutes=90,
        clipping_norm=1.5,
        noise=Noise(2.5, 0.5, 1e-5),
        report_metrics=False,
        report_class_counts=True,
        report_notes=True,
    )


def test_an_empty_file_forbids_nothing_but_keeps_names_and_class_counts(tmp_path):
    (tmp_path / "policy.yaml").write_text("")
    policy = load_policy(tmp_path / "policy.yaml")
    check_task(policy, 7, answered=1000, examples=1)
    assert not policy.report_notes
    assert not policy.report_class_counts


def test_sensitivity_defaults_to_twice_the_norm():
    policy = parse_policy({"clipping-norm": 3, "noise": {"epsilon": 1, "delta": 1e-6}}, "p.yaml")
    assert policy.noise == Noise(6.0, 1.0, 1e-6)


def test_a_multiplier_is_the_deviation_over_the_clipping_norm():
    policy = parse_policy({"clipping-norm": 3, "noise": {"multiplier": 0.25, "delta": 1e-6}}, "p.yaml")
    assert policy.noise.deviation == pytest.approx(0.75, rel=1e-12)
    assert policy.noise.sensitivity == 6.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"min_examples": 10}, "unknown key 'min_examples'; did you mean 'min-examples'"),
        ({"allowed-run": [1]}, "did you mean 'allowed-runs'"),
        ({"zzz": 1}, "valid keys: allowed-runs"),
        ({"max-rounds": 0}, "max-rounds is 0, expected a whole number above 0"),
        ({"max-rounds": True}, "max-rounds is True"),
        ({"min-examples": "many"}, "min-examples is 'many'"),
        ({"min-examples": None}, "min-examples has no value"),
        ({"allowed-runs": 5}, "allowed-runs is 5, expected a list"),
        ({"allowed-runs": ["x"]}, "expected run ids"),
        ({"app-hashes": ["abc"]}, "64 hexadecimal digits"),
        ({"clipping-norm": -1}, "clipping-norm is -1, expected a number above 0"),
        ({"clipping-norm": float("nan")}, "clipping-norm is nan"),
        ({"clipping-norm": float("inf")}, "clipping-norm is inf"),
        ({"noise": {"epsilon": 1, "delta": 1e-5}}, "noise needs a clipping-norm"),
        ({"clipping-norm": 1, "noise": {"epsilon": 1}}, "noise needs delta and either multiplier or epsilon"),
        ({"clipping-norm": 1, "noise": {"multiplier": 1, "epsilon": 1, "delta": 1e-5}}, "either multiplier or epsilon"),
        ({"clipping-norm": 1, "noise": {"multiplier": 1, "sensitivity": 1, "delta": 1e-5}}, "goes with epsilon only"),
        ({"privacy-budget": {"epsilon": 1, "delta": 1e-5}}, "privacy-budget needs noise"),
        (NOISED | {"privacy-budget": {"epsilon": 1, "delta": 1e-5}}, "privacy-budget needs report-metrics: false"),
        (NOISED | QUIET | {"privacy-budget": {"epsilon": 1}}, "privacy-budget needs epsilon and delta"),
        (NOISED | QUIET | {"privacy-budget": {"epsilon": 1, "delta": 2}}, "privacy-budget.delta is 2.0"),
        (
            NOISED | QUIET | {"privacy-budget": {"epsilon": 1, "delta": 1e-5}, "report-class-counts": True},
            "privacy-budget needs report-class-counts: false",
        ),
        (
            NOISED | QUIET | {"privacy-budget": {"epsilon": 1, "delta": 1e-5}, "report-notes": True},
            "privacy-budget needs report-notes: false",
        ),
        ({"clipping-norm": 1, "noise": {"epsilon": 1, "delta": 1e-5, "sigma": 1}}, "unknown key 'sigma'"),
        ({"clipping-norm": 1, "noise": {"epsilon": 0, "delta": 1e-5}}, "noise.epsilon is 0"),
        ({"clipping-norm": 1, "noise": {"epsilon": 1, "delta": 1}}, "delta is 1.0, expected a probability below 1"),
        ({"report-notes": "yes"}, "report-notes is 'yes', expected true or false"),
        (["a"], "must hold keys and values"),
    ],
)
def test_a_faulty_file_names_file_key_and_remedy(content, message):
    with pytest.raises(PolicyError, match=r"policy p\.yaml") as error:
        parse_policy(content, "p.yaml")
    assert message in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(PolicyError, match=r"absent\.yaml cannot be read"):
        load_policy(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(PolicyError, match=r"broken\.yaml cannot be read"):
        load_policy(tmp_path / "broken.yaml")


# --- the decision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "task", "key"),
    [
        (Policy(allowed_runs=frozenset({1})), {"run_id": 2}, "allowed-runs"),
        (Policy(allowed_runs=frozenset()), {"run_id": 2}, "allowed-runs"),
        (Policy(app_hashes=frozenset({HASH})), {"run_id": 1, "app_hash": "00000000"}, "app-hashes"),
        (Policy(app_hashes=frozenset({HASH})), {"run_id": 1, "app_hash": ""}, "app-hashes"),
        (Policy(app_hashes=frozenset({HASH})), {"run_id": 1, "app_hash": HASH[:4]}, "app-hashes"),
        (Policy(max_rounds=3), {"run_id": 1, "answered": 3}, "max-rounds"),
        (Policy(min_examples=50), {"run_id": 1, "examples": 49}, "min-examples"),
    ],
)
def test_what_is_forbidden_names_its_key(policy, task, key):
    with pytest.raises(PolicyRefusal, match=f"site policy forbids: .*{key}"):
        check_task(policy, **task)


def test_what_is_allowed_passes():
    policy = Policy(frozenset({1}), frozenset({HASH}), min_examples=50, max_rounds=3)
    check_task(policy, 1, answered=2, examples=50, app_hash=HASH[:8])
    check_task(policy, 1, app_hash=HASH)


def test_a_refusal_does_not_tell_how_many_images_there_are():
    with pytest.raises(PolicyRefusal) as error:
        check_task(Policy(min_examples=50), 1, examples=37)
    assert "37" not in str(error.value)


def test_the_hash_of_an_installed_bundle_is_in_its_path(tmp_path):
    inside = tmp_path / "apps" / "fedskew.fedskew.0.1.0.9f86d081" / "fedskew" / "__init__.py"
    assert installed_app_hash(str(inside)) == "9f86d081"
    assert installed_app_hash(str(tmp_path / "fedskew" / "__init__.py")) == ""


# --- clipping and noise -----------------------------------------------------------------------------------------


@pytest.fixture
def exchange():
    """A task with three arrays and a reply that sends two of them back, changed by an update of norm 10."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    rng = np.random.default_rng(0)
    model = {"frozen": rng.normal(size=(2,)), "a": rng.normal(size=(40, 5)), "b": rng.normal(size=(50,))}
    model = {name: value.astype(np.float32) for name, value in model.items()}
    update = {name: rng.normal(size=model[name].shape) for name in ("b", "a")}  # in another order, too
    norm = np.sqrt(sum((value**2).sum() for value in update.values()))
    sent = {name: (model[name] + value * 10 / norm).astype(np.float32) for name, value in update.items()}
    task = Message(RecordDict({ARRAYS: record(model)}), 1, "train")
    task.metadata.__dict__["_message_id"] = "x"
    return task, Message(RecordDict({ARRAYS: record(sent)}), reply_to=task), model, sent


def record(arrays):
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def difference(reply, model):
    """The update in a reply, as one vector."""
    sent = reply.content[ARRAYS]
    return np.concatenate([(sent[name].numpy().astype(float) - model[name]).ravel() for name in sorted(sent)])


def test_an_update_of_part_of_the_model_is_clipped(exchange):
    task, reply, model, sent = exchange
    before = difference(reply, model)
    protect(task, reply, ARRAYS, task.content[ARRAYS], clipping_norm=1.0)
    after = difference(reply, model)
    assert np.linalg.norm(after) == pytest.approx(1.0, rel=1e-4)
    assert np.allclose(after, before / 10, atol=1e-6)  # same direction
    assert list(reply.content[ARRAYS]) == list(sent)
    assert {array.dtype for array in reply.content[ARRAYS].values()} == {"float32"}
    assert len(task.content[ARRAYS]) == 3, "the task itself stays whole"


def test_a_small_update_is_left_alone(exchange):
    task, reply, model, _ = exchange
    before = difference(reply, model)
    protect(task, reply, ARRAYS, task.content[ARRAYS], clipping_norm=100.0)
    assert np.allclose(difference(reply, model), before, atol=1e-6)


def test_noise_has_the_deviation_that_the_policy_tells(exchange):
    task, reply, model, _ = exchange
    noise = Noise(sensitivity=2.0, epsilon=0.5, delta=1e-5)
    protect(task, reply, ARRAYS, task.content[ARRAYS], 1.0, noise)
    assert difference(reply, model).std() == pytest.approx(noise.deviation, rel=0.15)  # 250 values
    assert noise.deviation == pytest.approx(19.379, rel=1e-3)


def test_a_model_that_did_not_change_gets_noise_too(exchange):
    task, _, model, _ = exchange
    reply = Message(RecordDict({ARRAYS: record({"a": model["a"]})}), reply_to=task)
    protect(task, reply, ARRAYS, task.content[ARRAYS], 1.0)
    assert not difference(reply, model).any()
    protect(task, reply, ARRAYS, task.content[ARRAYS], 1.0, Noise(1.0, 1.0, 1e-5))
    assert difference(reply, model).std() > 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.ones(3, np.float32)}, "tensor other was not received"),
        ({"b": np.ones(49, np.float32)}, "tensor b was not received in the shape"),
        ({"b": np.full(50, np.nan, np.float32)}, "not finite"),
        ({"b": np.full(50, np.inf, np.float32)}, "not finite"),
    ],
)
def test_what_cannot_be_clipped_must_not_leave(exchange, arrays, message):
    task, _, _, _ = exchange
    reply = Message(RecordDict({ARRAYS: record(arrays)}), reply_to=task)
    with pytest.raises(PrivacyError, match=message):
        protect(task, reply, ARRAYS, task.content[ARRAYS], 1.0)
