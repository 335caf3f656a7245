"""The audit log: nothing is lost, mixed up or changed unseen."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from fedskew.site import audit
from fedskew.site.audit import AuditError, AuditState, answers, append_entry, read_entries, verify_audit


@pytest.fixture
def log(tmp_path):
    """A log of five lines."""
    path = tmp_path / "audit" / "site-a.jsonl"
    for number in range(1, 6):
        append_entry(path, {"run": 7, "round": number, "kind": "train", "outcome": "answered", "note": "ü"})
    return path


def edit(path, change):
    lines = path.read_bytes().split(b"\n")[:-1]
    path.write_bytes(b"".join(line + b"\n" for line in change(lines)))


def test_a_line_holds_time_content_and_the_hash_of_the_line_before(log):
    entries = read_entries(log)
    assert [entry["round"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0]["previous"] == audit.START
    assert entries[0]["note"] == "ü"
    age = datetime.now(UTC) - datetime.fromisoformat(entries[-1]["time"])
    assert timedelta() <= age < timedelta(minutes=1)
    assert entries[-1]["time"].endswith("Z")
    assert verify_audit(log) == AuditState(5, audit._line_hash(log.read_bytes().splitlines()[-1]))


def test_log_and_folder_are_private(log):
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace(b'"round": 2', b'"round": 9'), *lines[2:]], 3),
        (lambda lines: [*lines[:2], *lines[3:]], 3),
        (lambda lines: lines[1:], 1),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:2], b"not json", *lines[2:]], 4),
        (lambda lines: [*lines, b"not json"], 6),
        (lambda lines: [*lines, b"[1]"], 6),
        (lambda lines: [*lines, b'{"run": 7, "previous": "0"}'], 6),
    ],
    ids=["changed", "removed", "first removed", "repeated", "swapped", "garbage", "garbage last", "no object", "added"],
)
def test_every_change_is_found_at_its_line(log, change, line):
    edit(log, change)
    with pytest.raises(AuditError, match=rf"site-a\.jsonl: line {line} ") as error:
        verify_audit(log)
    assert str(error.value).endswith(
        "; somebody changed the file. Keep it for inquiry under another name; a new one is begun at the next message"
    )


def test_a_missing_log_is_named_and_an_empty_one_is_whole(tmp_path):
    with pytest.raises(AuditError, match="does not exist"):
        verify_audit(tmp_path / "absent.jsonl")
    assert read_entries(tmp_path / "absent.jsonl") == []
    (tmp_path / "empty.jsonl").touch()
    assert verify_audit(tmp_path / "empty.jsonl") == AuditState(0, audit.START)


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_cut_short_by_a_crash_does_not_stop_the_log(log, cut):
    log.write_bytes(log.read_bytes()[:-cut])
    assert len(read_entries(log)) == (5 if cut == 1 else 4)
    append_entry(log, {"round": 6})
    append_entry(log, {"round": 7})
    assert [entry["round"] for entry in read_entries(log)][-2:] == [6, 7]
    assert verify_audit(log).entries == (7 if cut == 1 else 6)


def test_a_full_disk_leaves_the_log_as_it_was(log, monkeypatch):
    before, write = log.read_bytes(), os.write
    monkeypatch.setattr(audit.os, "write", lambda handle, data: write(handle, data[:10]))
    with pytest.raises(AuditError, match=r"the disk is full.*audit-log="):
        append_entry(log, {"round": 6})
    assert log.read_bytes() == before

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit.os, "fsync", full)
    monkeypatch.setattr(audit.os, "write", write)
    with pytest.raises(AuditError, match="No space left"):
        append_entry(log, {"round": 6})
    assert log.read_bytes() == before


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="name a writable file"):
        append_entry(tmp_path / "file" / "audit.jsonl", {})


def test_the_check_sees_the_lines_and_can_stop_the_append(log):
    seen = []

    def check(entries):
        seen.extend(entries)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        append_entry(log, {"round": 6}, check)
    assert len(seen) == 5
    assert verify_audit(log).entries == 5


def test_the_check_needs_a_whole_chain(log):
    edit(log, lambda lines: lines[1:])
    with pytest.raises(AuditError, match="line 1"):
        append_entry(log, {}, lambda _: None)


def test_answers_are_counted_by_run_and_kind(log):
    append_entry(log, {"run": 7, "kind": "train", "outcome": "refused"})
    append_entry(log, {"run": 7, "kind": "evaluate", "outcome": "answered"})
    append_entry(log, {"run": 8, "kind": "train", "outcome": "answered"})
    entries = read_entries(log)
    assert [answers(entries, *what) for what in ((7, "train"), (7, "evaluate"), (8, "train"), (9, "train"))] == [
        5,
        1,
        1,
        0,
    ]


def test_long_lines_are_chained_too(tmp_path):
    path = tmp_path / "log"
    for size in (10, 50_000, 10):
        append_entry(path, {"text": "x" * size})
    assert verify_audit(path).entries == 3


WRITER = """
import sys
from pathlib import Path
from fedskew.site.audit import append_entry, answers
log, name, count, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def check(entries):
    if answers(entries, 1, "train") >= limit:
        sys.exit()
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    entry = {"run": 1, "kind": "train", "outcome": "answered", "who": name, "number": number}
    append_entry(log, entry, check if limit else None)
"""


def writers(log, names, count, limit=0):
    command = [sys.executable, "-c", WRITER, str(log)]
    started = [subprocess.Popen([*command, name, str(count), str(limit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                text=True) for name in names]  # fmt: skip
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    return started


def test_processes_that_write_at_once_lose_and_mix_nothing(tmp_path):
    log = tmp_path / "log"
    for process in writers(log, "abc", 40):
        assert process.wait(30) == 0
    entries = read_entries(log)
    for name in "abc":
        assert [entry["number"] for entry in entries if entry["who"] == name] == list(range(40))
    assert verify_audit(log).entries == 120


def test_a_limit_holds_against_processes_that_answer_at_once(tmp_path):
    log = tmp_path / "log"
    for process in writers(log, "abc", 20, limit=25):
        assert process.wait(30) == 0
    assert verify_audit(log).entries == 25


def test_a_killed_writer_leaves_a_log_that_goes_on(tmp_path):
    log = tmp_path / "log"
    for moment in (0.01, 0.05, 0.1):
        (process,) = writers(log, "a", 100_000)
        while not log.exists():
            time.sleep(0.002)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        append_entry(log, {"who": "after"})
    assert json.loads(log.read_bytes().splitlines()[-1])["who"] == "after"
    assert sum(entry["who"] == "after" for entry in read_entries(log)) == 3


def test_a_last_line_that_was_made_unreadable_is_no_line_that_a_dying_process_left(tmp_path):
    """It has its newline, which a torn one never has: the next entry must not cover it up."""
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        append_entry(path, {"round": number})
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + b"x" * (len(last) - 1) + b"\n")
    append_entry(path, {"round": 3})
    with pytest.raises(AuditError, match="line 4 does not follow from the line before it"):
        verify_audit(path)
