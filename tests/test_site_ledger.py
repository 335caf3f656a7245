"""A site's books: what is cut off, emptied or replaced is found, and neither rounds nor ε start again at zero."""

import json
import math
import shutil

import pytest
from builders import lively_model, run_here, tiny_config

from fedskew.apps import make_client_app
from fedskew.federation.grids import LocalGrid
from fedskew.federation.messages import AUDIT_ENTRIES, AUDIT_SHA256, REPORT, Task, pack_task
from fedskew.federation.server import FederatedRun
from fedskew.federation.weights import to_record
from fedskew.model.catalogue import dense_architecture
from fedskew.runs.resume import open_checkpoint
from fedskew.site import ledger as books
from fedskew.site.accounting import epsilon
from fedskew.site.audit import AuditError, append_entry, last_hash, read_entries, verify_audit
from fedskew.site.ledger import Anchor, beside, cost_of, read_books, record_answer

TRAIN = {"node": "a", "run": 7, "kind": "train", "round": 1, "outcome": "answered"}


@pytest.fixture
def site(tmp_path):
    """Audit log and ledger of a site that has given three answers and refused one."""
    log = tmp_path / "audit.jsonl"
    for number in range(3):
        answer(log, TRAIN | {"round": number}, 0.5)
    append_entry(log, {"run": 7, "kind": "train", "outcome": "refused"})
    return log


def answer(log, entry=TRAIN, multiplier=0.0, check=lambda _: None):
    return record_answer(log, beside(log), entry, lambda known: cost_of(known, entry["run"], multiplier, 1e-5), check)


def cut(path, lines):
    """Keep the first lines only."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))


def test_an_answer_is_in_both_files_and_they_fit(site):
    found = read_books(site, beside(site))
    assert [entry["outcome"] for entry in found.audit] == ["answered"] * 3 + ["refused"]
    assert [entry["outcome"] for entry in found.ledger] == ["answered", "recorded"] * 3
    assert found.answers(7, "train") == found.answers(None, "train") == 3
    assert (found.answers(8, "train"), found.answers(7, "evaluate")) == (0, 0)
    assert verify_audit(site).entries == 4
    assert verify_audit(beside(site)).entries == 6
    assert answer(site) == Anchor(5, last_hash(site))


def test_the_ledger_says_what_each_answer_cost(site):
    answer(site, TRAIN | {"run": 8}, 0.5)
    lines = [entry for entry in read_entries(beside(site)) if entry["outcome"] == "answered"]
    assert [line["epsilon-total"] for line in lines] == pytest.approx([epsilon([0.5] * n, 1e-5) for n in (1, 2, 3, 4)])
    assert lines[-1]["epsilon-run"] == pytest.approx(epsilon([0.5], 1e-5))
    answer(site)
    assert read_entries(beside(site))[-2]["privacy"] == "none"
    assert read_books(site, beside(site)).without_noise() == 1


@pytest.mark.parametrize("left", [0, 1, 2])
def test_an_audit_log_that_was_cut_or_emptied_is_found(site, left):
    cut(site, left)
    with pytest.raises(AuditError, match=r"audit\.jsonl does not fit .*Somebody cut, emptied or replaced it"):
        read_books(site, beside(site))
    with pytest.raises(AuditError, match=r"the ledger saw 3 entries in it, now it has"):
        answer(site)


def test_the_only_answer_of_an_audit_log_cannot_be_cut_off(tmp_path):
    log = tmp_path / "audit.jsonl"
    answer(log)
    log.write_bytes(b"")
    with pytest.raises(AuditError, match="the ledger saw 1 entries in it, now it has 0"):
        read_books(log, beside(log))
    log.unlink()
    with pytest.raises(AuditError, match="does not fit"):
        read_books(log, beside(log))


def test_an_audit_log_that_was_written_anew_is_found(site):
    site.unlink()
    for number in range(4):
        append_entry(site, TRAIN | {"round": number})
    with pytest.raises(AuditError, match="does not fit"):
        read_books(site, beside(site))


@pytest.mark.parametrize("left", [0, 2, 4])
def test_a_ledger_that_was_cut_or_emptied_is_found(site, left):
    cut(beside(site), left)
    with pytest.raises(AuditError, match=r"ledger\.jsonl does not fit .*audit\.jsonl: the audit log names a line"):
        read_books(site, beside(site))


def test_a_refusal_that_is_written_meanwhile_is_counted(site):
    """Refusals wait for the audit log alone, so one may come between the look into the books and the answer's line."""
    anchor = answer(site, check=lambda _: append_entry(site, TRAIN | {"outcome": "refused"}))
    assert anchor == Anchor(6, last_hash(site)), "three answers and a refusal, the one meanwhile, and this"
    assert read_books(site, beside(site)).answers(None, "train") == 4


def test_a_changed_line_of_the_ledger_is_found(site):
    text = beside(site).read_text()
    beside(site).write_text(text.replace('"noise-multiplier": 0.5', '"noise-multiplier": 9.5', 1))
    with pytest.raises(AuditError, match="line 2 does not follow"):
        read_books(site, beside(site))


def test_an_audit_log_put_away_by_the_site_loses_no_count(site):
    new = site.with_name("audit-2.jsonl")
    ledger = beside(site)
    site.rename(site.with_name("old.jsonl"))
    record_answer(new, ledger, TRAIN, lambda _: {}, lambda _: None)
    found = read_books(new, ledger)
    assert found.answers(7, "train") == 4
    assert len(found.audit) == 1
    cut(new, 0)
    with pytest.raises(AuditError, match=r"audit-2\.jsonl does not fit"):
        read_books(new, ledger)


def test_answers_of_an_audit_log_from_before_there_was_a_ledger_count(tmp_path):
    log = tmp_path / "audit.jsonl"
    for _ in range(2):
        append_entry(log, TRAIN)
    answer(log)
    found = read_books(log, beside(log))
    assert found.answers(7, "train") == 3
    assert found.without_noise() == 3


def test_what_the_check_forbids_is_written_nowhere(site):
    def forbid(_):
        raise ValueError("no more")

    before = site.read_bytes(), beside(site).read_bytes()
    with pytest.raises(ValueError, match="no more"):
        answer(site, check=forbid)
    assert (site.read_bytes(), beside(site).read_bytes()) == before


@pytest.mark.parametrize("calls", [1, 2])
def test_a_process_that_dies_between_the_lines_stops_nothing_and_costs_what_it_counted(site, monkeypatch, calls):
    real, made = books.add_line, []

    def dies(path, entry):
        made.append(path)
        if len(made) > calls:
            raise KeyboardInterrupt
        return real(path, entry)

    monkeypatch.setattr(books, "add_line", dies)
    with pytest.raises(KeyboardInterrupt):
        answer(site, multiplier=0.5)
    monkeypatch.undo()
    assert read_books(site, beside(site)).answers(7, "train") == 4
    answer(site, multiplier=0.5)
    found = read_books(site, beside(site))
    assert found.answers(7, "train") == len(found.multipliers()) == 5


# --- in the client ----------------------------------------------------------------------------------------------


@pytest.fixture
def ask(generated, tmp_path):
    """Ask a site for an answer; its policy is a text."""

    def send(policy, kind="train"):
        (tmp_path / "policy.yaml").write_text(policy)
        config = tiny_config(data={"clients": "own"})
        arch = dense_architecture(config.model)
        site = {"data-dir": str(generated), "name": "site-a", "policy": str(tmp_path / "policy.yaml"),
                "audit-log": str(tmp_path / "audit.jsonl")}  # fmt: skip
        grid = LocalGrid(make_client_app(), 1, node_configs={1: site})
        content = pack_task(Task(1, 9, arch, config), to_record(lively_model(arch).state_dict()))
        return next(iter(grid.pull_messages(grid.push_messages([grid.create_message(content, kind, 1, "group")]))))

    return send, tmp_path / "audit.jsonl"


def test_emptying_the_audit_log_does_not_start_max_rounds_again(ask):
    send, log = ask
    assert not send("max-rounds: 1").has_error()
    assert "max-rounds of 1" in send("max-rounds: 1").error.reason
    log.write_bytes(b"")
    assert "AuditError" in send("max-rounds: 1").error.reason
    assert "does not fit" in read_entries(log)[-1]["reason"]


def test_a_task_that_comes_too_late_costs_no_training(ask, monkeypatch):
    """The count under the lock decides; the one before it saves the hours."""
    send, _ = ask
    assert not send("max-rounds: 1").has_error()
    monkeypatch.setattr("fedskew.learning.local.train", lambda *_, **__: pytest.fail("it was trained"))
    assert "max-rounds of 1" in send("max-rounds: 1").error.reason


def test_a_run_that_is_resumed_still_knows_where_an_audit_log_stood(generated, tmp_path):
    site = {"data-dir": str(generated), "name": "a", "audit-log": str(tmp_path / "a.jsonl")}

    def run(rounds, *saved):
        settings = tiny_config(data={"clients": "own"}, federation={"rounds": rounds}, prune={"criterion": "none"},
                               run={"output_dir": str(tmp_path), "name": "run"})  # fmt: skip
        return FederatedRun(LocalGrid(make_client_app(), 1, node_configs={1: site}), settings, *saved).run()

    folder = run(1)
    for path in tmp_path.glob("a*.jsonl"):
        path.unlink()  # both at once: the site cannot know
    line = run(2, *open_checkpoint(folder.path)).records()[2]
    assert "its audit log has 1 lines with this answer, and had 1 before" in line["notes"]["a"][-1]


def test_a_budget_is_spent_by_the_answer_that_exceeds_it_not_by_the_one_that_meets_it():
    known = books.Books(ledger=[{"run": 1, "outcome": "answered", books.MULTIPLIER: 1.0}] * 2)
    two, three = (epsilon([1.0] * count, 1e-5) for count in (2, 3))
    assert books.is_spent(known, 1.0, three, 1e-5) is None
    assert books.is_spent(known, 1.0, three * (1 - 1e-9), 1e-5) == (two, three)
    assert books.is_spent(known, 0.0, 1e300, 1e-5) == (two, math.inf), "an answer without noise costs all there is"


def test_a_site_stops_when_its_budget_over_all_runs_is_spent(ask, monkeypatch, caplog):
    """z = 0.5/2: each of three answers costs; the fourth would exceed a budget that holds three."""
    send, log = ask
    budget = (epsilon([0.25] * 3, 1e-6) + epsilon([0.25] * 4, 1e-6)) / 2
    policy = (
        "clipping-norm: 2\nnoise: {multiplier: 0.5, delta: 1e-5}\nreport-metrics: false\n"
        f"privacy-budget: {{epsilon: {budget}, delta: 1e-6}}"
    )
    for run in (1, 2, 3):
        monkeypatch.setattr("fedskew.federation.grids.LOCAL_RUN_ID", run)
        assert not send(policy).has_error()
    reason = send(policy).error.reason
    assert f"its privacy-budget of ε={budget:g} at δ=1e-06 over all runs is spent: ε is " in reason
    assert f"with one more answer it would be {epsilon([0.25] * 4, 1e-6):.4g}" in reason
    spent = [entry for entry in read_entries(beside(log)) if entry["outcome"] == "answered"]
    assert [entry["run"] for entry in spent] == [1, 2, 3]
    assert spent[-1]["epsilon-total"] == pytest.approx(epsilon([0.25] * 3, 1e-6))
    assert read_entries(log)[-1]["outcome"] == "refused"


def test_no_differential_privacy_is_said_where_there_is_none(ask, caplog, monkeypatch):
    monkeypatch.setattr(__import__("logging").getLogger("flwr"), "propagate", True)
    send, log = ask
    caplog.set_level("INFO")
    assert not send("clipping-norm: 1").has_error()
    assert "no differential privacy: the policy adds no noise to this update" in caplog.text
    assert read_entries(log)[-1]["noise-deviation"] == 0
    assert not send("clipping-norm: 1\nnoise: {multiplier: 0.1, delta: 1e-5}").has_error()
    assert "noise of deviation 0.1 each adds up to a norm of" in caplog.text
    assert f"with this update ε is {epsilon([0.05], 1e-5):.4g} for this run" in caplog.text


def test_the_noise_cannot_be_told_from_the_seed_that_a_server_sets(ask):
    """Training is repeatable by the task's seed; if the noise were too, a server could take it away again."""
    send, log = ask
    policy = "clipping-norm: 1\nnoise: {multiplier: 0.1, delta: 1e-5}"
    send(policy)
    send(policy)
    first, second = (entry["sha256"] for entry in read_entries(log))
    assert first != second


def test_the_coordinator_keeps_where_every_audit_log_stands(generated, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(__import__("logging").getLogger("flwr"), "propagate", True)
    (tmp_path / "policy.yaml").write_text("")
    nodes = {1: {"data-dir": str(generated), "name": "a", "policy": str(tmp_path / "policy.yaml"),
                 "audit-log": str(tmp_path / "a.jsonl")},
             2: {"data-dir": str(generated), "name": "b"}}  # fmt: skip
    app, kept = make_client_app(), tmp_path / "kept"

    class Forgetting(LocalGrid):
        """Puts the books of the first round back before the third: site and ledger cannot know, the coordinator can."""

        def push_messages(self, messages):
            messages = list(messages)
            number = messages[0].content["config"]["server-round"] if messages else 0
            if number == 2:
                kept.mkdir()
                shutil.copy(tmp_path / "a.jsonl", kept)
                shutil.copy(tmp_path / "a.ledger.jsonl", kept)
            if number == 3:
                shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
            return super().push_messages(messages)

    config = tiny_config(
        data={"clients": "own"},
        federation={"rounds": 3},
        prune={"criterion": "none"},
        run={"output_dir": str(tmp_path)},
    )
    records = run_here(config, grid=Forgetting(app, 2, node_configs=nodes)).records()
    assert [record.get("audit", {}).get("a", {}).get("entries") for record in records] == [None, 1, 2, 2]
    assert records[-1]["audit"]["a"]["sha256"] == last_hash(tmp_path / "a.jsonl")
    assert set(records[-1]["audit"]) == {"a"}
    assert "its audit log has 2 lines with this answer, and had 2 before: it was cut" in records[-1]["notes"]["a"][-1]
    assert "a: its audit log has 2 lines" in caplog.text
    assert not any("audit log" in note for record in records[:3] for note in record["notes"].get("a", []))


def test_an_answer_tells_where_the_audit_log_stands(ask):
    send, log = ask
    told = send("min-examples: 1").content[REPORT]
    assert (told[AUDIT_ENTRIES], told[AUDIT_SHA256]) == (1, last_hash(log))
    assert json.loads(log.read_text())["report"] == ["node", "notes"]
