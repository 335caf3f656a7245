"""The doctor: each fault is found by its own line, with what to do; no check stops the others."""

import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from tls_server import only, statuses
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.ops import check_host
from fedskew.ops.check_data import Expected, check_data
from fedskew.ops.check_policy import check_audit, check_policy, check_spent
from fedskew.ops.doctor import check_node_config
from fedskew.ops.findings import FAIL, OK, WARN, exit_code, fail, ok, run_checks, to_json, to_lines, warn
from fedskew.site.accounting import epsilon
from fedskew.site.audit import append_entry
from fedskew.site.ledger import cost_of, record_answer


@pytest.fixture
def hospital(generated, tmp_path):
    """A copy of the generated data that a test may spoil."""
    return Path(shutil.copytree(generated, tmp_path / "data"))


def change(folder, **columns):
    """Replace values in the first rows of the table: column={old: new} or column=new for all rows."""
    table = folder / "HAM10000_metadata.csv"
    head, *rows = [line.split(",") for line in table.read_text().splitlines()]
    for column, new in columns.items():
        for row in rows:
            position = head.index(column)
            row[position] = new.get(row[position], row[position]) if isinstance(new, dict) else new
    table.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")


def test_good_data(hospital):
    found = check_data(hospital, None, Expected())
    assert {finding.status for finding in found} == {OK}
    assert "160 images of" in only(found, "data").message
    assert only(found, "classes").message.startswith("akiec ")
    assert "160 images decoded, all of them readable" in only(found, "images").message


def test_labels_that_are_no_class_name_the_nearest(hospital):
    change(hospital, dx={"mel": "melanoma", "nv": "quux"})
    found = only(check_data(hospital, None, Expected()), "classes")
    assert found.status == FAIL
    assert "'melanoma' (" in found.message
    assert "nearest is 'mel'" in found.message
    assert "none is like it" in found.message
    assert "manifest.yaml" in found.remedy


def test_metadata_that_is_missing_or_unknown(hospital):
    change(hospital, age="", sex={"female": "f"}, localization={"back": "lower leg"})
    found = check_data(hospital, None, Expected())
    assert only(found, "age").message == "no image has a value"
    assert "'f' (" in only(found, "sex").message
    assert "nearest is 'female'" in only(found, "sex").message
    assert "nearest is 'lower extremity'" in only(found, "localization").message
    assert exit_code(found) == 0


def test_unreadable_images_are_named(hospital):
    images = sorted(hospital.rglob("*.jpg"))
    images[0].unlink()
    images[1].write_bytes(b"no image")
    images[2].write_bytes(images[2].read_bytes()[:500])
    found = only(check_data(hospital, None, Expected()), "images")
    assert found.status == WARN
    assert found.message.startswith("157 images decoded; 3 cannot be used")
    assert f"{images[0].stem} (file not found)" in found.message
    assert f"{images[1].stem} (UnidentifiedImageError" in found.message
    assert "0x" not in found.message
    for image in images[3:20]:
        image.write_bytes(b"")
    assert only(check_data(hospital, None, Expected()), "images").status == FAIL


def test_a_data_set_by_itself(hospital):
    """Who only has data is not told that SuperLink, key and policy are not checked."""
    words = ["doctor", "data", "--data-dir", str(hospital)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    subjects = {line.split()[1] for line in done.stdout.splitlines() if line.startswith(("ok ", "warn "))}
    assert {"data", "classes", "images", "cache"} <= subjects
    assert not {"SuperLink", "node", "policy", "python"} & subjects
    assert f"next: fedskew run --preset ham10000-small --data-dir {hospital}" in done.stderr
    told = CliRunner().invoke(app, [*words, "--set", "model.classes=[nv,mel,bkl,bcc,akiec,vasc,df]"]).stderr
    assert " ".join(told.split()).endswith("--set 'model.classes=[nv,mel,bkl,bcc,akiec,vasc,df]'"), "as checked"
    change(hospital, dx="melanoma")
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1
    assert "next:" not in again.output


def test_decoding_can_be_limited(hospital):
    assert "40 images decoded of 160" in only(check_data(hospital, None, Expected(), most=40), "images").message


def test_copies_and_notes_of_the_source_are_told(tmp_path):
    for name, colour in (("mel/a.png", 90), ("nv/b.png", 90), ("nv/c.png", 91)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (colour, 20, 30)).save(tmp_path / name)
    found = check_data(tmp_path, None, Expected(("mel", "nv")))
    lines = [finding.message for finding in found if finding.subject == "duplicates"]
    assert lines[0] == "duplicates by content: 1 of 3 images are copies of others: mel/a.png = nv/b.png"
    assert lines[1].startswith("duplicates across labels: 1 of 1")
    notes = [finding for finding in found if finding.subject == "data" and finding.status == WARN]
    assert "nothing is known of lesions" in notes[0].message
    assert exit_code(found) == 0


def test_no_data_at_all(tmp_path):
    (found,) = check_data(tmp_path / "absent", None, Expected())
    assert found.status == FAIL
    assert "does not exist" in found.message
    (found,) = check_data(tmp_path, tmp_path / "absent.yaml", Expected())
    assert "manifest" in found.message


@pytest.fixture
def policy(tmp_path):
    def write(text):
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        path.chmod(0o644)
        return path

    return write


def test_policies(policy):
    pinned = "app-hashes: ['" + 64 * "a" + "']\n"
    found = check_policy(policy(pinned + "min-examples: 50\nmax-rounds: 9\nmax-rounds-total: 90\nclipping-norm: 2"),
                         lambda: 50)  # fmt: skip
    assert statuses(found) == {"policy": OK, "privacy": OK}
    assert "; at most 90 minutes a task; " in check_policy(policy(pinned + "max-task-minutes: 90"))[0].message
    assert found[0].message.endswith(
        "answers any run of pinned apps (1); at least 50 images; at most 9 rounds of a run; at most 90 rounds of all "
        "runs; no limit of a task's minutes (max-task-minutes); "
        "a task of at most 50 epochs, batches of 1024 (4096 in evaluation), 512 pixels a side, 200,000,000 "
        "weights, all CPU threads; updates clipped to norm 2; no noise; reports metrics"
    )
    assert only(found, "privacy").message == "no differential privacy: the policy adds no noise to updates"
    per_run = check_policy(policy(pinned + "max-rounds: 9"))
    assert "as many runs as it likes" in next(f.message for f in per_run if f.status == WARN)
    assert "any app and any run" in check_policy(policy(""))[1].message
    assert "every answer would be refused" in check_policy(policy(pinned + "min-examples: 51"), lambda: 50)[1].message
    assert "did you mean 'max-rounds'" in only(check_policy(policy("max-round: 1")), "policy").message
    assert only(check_policy(None), "policy").status == WARN
    path = policy(pinned)
    path.chmod(0o666)
    assert f"chmod go-w {path}" in [finding.remedy for finding in check_policy(path)]


def test_what_a_policys_noise_is_worth(policy):
    """The guide once gave C=1, ε=0.5 as a sample; it destroys any model, and nothing said so."""
    text = "allowed-runs: [1]\nclipping-norm: 1\nreport-metrics: false\nmax-rounds: 10\nmax-rounds-total: 40\n"
    budget = "privacy-budget: {epsilon: 9, delta: 1e-6}\n"
    found = check_policy(policy(text + budget + "noise: {epsilon: 0.5, delta: 1e-6}"))
    told, size, held = [finding for finding in found if finding.subject == "privacy"]
    # σ = 2·√(2·ln(1.25e6))/0.5 = 21.195, so z = σ/2 and ρ = k/(2·z²); ε by the Rényi bound, worked out apart
    assert told.status == OK
    words = re.split(r"ε=(\d+\.\d+)", told.message)
    assert [float(word) for word in words[1::2]] == pytest.approx([0.40422, 1.38238, 2.93709], rel=0.003)
    assert words[2::2][:2] == [
        ", δ=1e-06) differentially private; 10 of them, all that one run gets: ",
        "; 40 of them, all that all runs get: ",
    ]
    assert held.message == "the budget of ε=9 at δ=1e-06 holds 289 updates, of all runs together"
    assert size.status == WARN
    assert "on 27,550,000 weights, noise of deviation 21.2 each adds up to a norm of 1.11e+05" in size.message
    assert "the model learns nothing and is destroyed, unless" in size.message
    small = check_policy(policy(text + budget + "noise: {multiplier: 0.01, delta: 1e-6}"))
    assert [f.message.split(" holds ")[1] for f in small if f.status == FAIL] == ["0 updates, of all runs together"]
    weak = check_policy(policy("allowed-runs: [1]\nclipping-norm: 1\nnoise: {multiplier: 1e-4, delta: 1e-5}"))
    warned = [finding.message for finding in weak if finding.status == WARN]
    assert [text[:20] for text in warned] == ["an ε above 10 promis", "losses and accuracie", "the loss of privacy "]
    assert "0.525 times the largest update" in [f.message for f in weak if f.subject == "privacy"][1]


def test_what_was_spent(policy, tmp_path):
    log, ledger = tmp_path / "a.jsonl", tmp_path / "a.ledger.jsonl"
    for run, multiplier in ((7, 0.5), (8, 0.5), (8, 0.5)):
        entry = {"run": run, "kind": "train", "outcome": "answered"}
        record_answer(log, ledger, entry, lambda books, m=multiplier: cost_of(books, 8, m, 1e-5), lambda _: None)
    file = policy("clipping-norm: 1\nreport-metrics: false\nnoise: {multiplier: 1, delta: 1e-5}\n"
                  "privacy-budget: {epsilon: 50, delta: 1e-5}")  # fmt: skip
    (found,) = check_spent(file, log, ledger)
    assert found.message == (
        f"3 updates have left with noise: ε={epsilon([0.5] * 3, 1e-5):.4g} over all runs, "
        f"{epsilon([0.5] * 2, 1e-5):.4g} of run 8 (δ=1e-05), of a budget of 50"
    )
    record_answer(log, ledger, {"run": 8, "kind": "train", "outcome": "answered"},
                  lambda books: cost_of(books, 8, 0.0, 0.0), lambda _: None)  # fmt: skip
    _, bare = check_spent(file, log, ledger)
    assert bare.message.startswith("besides, 1 answers have left without noise: for these there is no differential")


def test_the_audit_log(tmp_path):
    log = tmp_path / "audit.jsonl"
    assert "does not exist yet" in only(check_audit(log), "audit log").message
    for number in range(3):
        append_entry(log, {"round": number})
    assert "3 entries, chain whole" in only(check_audit(log), "audit log").message
    log.write_text(log.read_text().replace('"round": 1', '"round": 7'))
    assert "line 3" in only(check_audit(log), "audit log").message


def test_node_configurations(tmp_path):
    assert check_node_config({"data-dir": "/data", "manifest": "/etc/m.yaml", "name": "a"}) == []
    typo, relative = check_node_config({"data_dir": "/data", "policy": "p.yaml"})
    assert (typo.status, typo.remedy) == (WARN, "did you mean 'data-dir'?")
    assert (relative.status, relative.remedy) == (FAIL, f"policy='{Path('p.yaml').resolve()}'")


def test_versions_below_the_floor_and_absent_packages(monkeypatch):
    assert {finding.status for finding in check_host.check_versions()} == {OK}
    real = importlib.metadata.version

    def version(name):
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"flwr": "1.9.0"}.get(name, real(name))

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = check_host.check_versions()
    assert only(found, "flwr").message.startswith("1.9.0 is older than 1.4")
    assert "pip install" in only(found, "timm").remedy


def test_numbers_are_compared_not_texts():
    assert check_host.release("2.13.0+cpu") > check_host.release("2.6")
    assert check_host._compared("x", "2.6", "2.6.0").status == OK


def test_commands_that_flower_starts_by_name(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert statuses(check_host.check_commands()) == {"commands": OK}
    monkeypatch.setenv("PATH", "/nowhere")
    assert "flower-superexec" in only(check_host.check_commands(), "commands").message


def test_disk_and_memory(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(check_host.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 60e9}))
    for disk, memory, status in ((0.5e9, 0.5e9, FAIL), (5e9, 2e9, WARN), (50e9, 9e9, OK)):
        monkeypatch.setattr(check_host.shutil, "disk_usage", lambda _, free=disk: usage._replace(free=int(free)))
        assert statuses(check_host.check_disk({"disk": tmp_path / "not" / "there"})) == {"disk": status}
        monkeypatch.setattr(check_host, "_container_limit", lambda free=memory: int(free))
        assert statuses(check_host.check_memory()) == {"memory": status}


def test_a_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written" in only(check_host.check_disk({"disk": file}), "disk").message


def test_a_check_that_breaks_is_told_and_stops_nothing():
    def broken():
        raise ZeroDivisionError("by chance")

    found = run_checks([("a", broken), ("b", lambda: sys.exit("gone")), ("c", lambda: [ok("c", "fine")])])
    assert [finding.status for finding in found] == [FAIL, FAIL, OK]
    assert "ZeroDivisionError: by chance" in found[0].message


def test_lines_and_json(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    found = [ok("disk", "fine"), warn("memory", "a little", "add some"), fail("TLS", "word " * 30, "mend it")]
    lines = to_lines(found)
    assert lines[0] == (OK, "ok    disk    fine")
    assert lines[2] == ("", "              → add some")
    assert max(len(part) for _, line in lines for part in line.splitlines()) <= 60
    assert lines[-1] == (FAIL, "1 problem, 1 warning, 1 ok")
    assert json.loads(to_json(found))["findings"][2] == {
        "status": "FAIL", "subject": "TLS", "message": "word " * 30, "remedy": "mend it"
    }  # fmt: skip
    assert exit_code(found[:2]) == 0


def test_the_command_has_an_exit_code_for_scripts(tmp_path, hospital):
    runner = CliRunner()
    found = runner.invoke(app, ["doctor", "site", "--data-dir", str(tmp_path / "absent"), "--json"])
    assert found.exit_code == 1
    assert json.loads(found.output)["ok"] is False
    found = runner.invoke(app, ["doctor", "site", "--superlink", "https://x"])
    assert found.exit_code == 2
    assert "is not host:port" in found.output
    found = runner.invoke(app, ["doctor", "site", "--node-config", f"data-dir='{hospital}' polcy='x'", "--images", "8"])
    assert "did you mean 'policy'?" in found.output
    assert "8 images decoded of 160" in found.output


OWN = """\
image,dx,skin,mm,room
a.png,mel,i,5,x
b.png,nv,ii,-1,x
c.png,nv,vii,40,y
"""
OWN_MANIFEST = """\
file: t.csv
image: image
label: dx
labels: {mel: melanoma, nv: naevus}
metadata:
  skin_typ: skin
  mm: {column: mm, numbers: true}
  room: room
"""
OWN_CONFIG = """\
model:
  name: swin_micro_patch4_window4_32
  classes: [melanoma, naevus]
  metadata:
    skin_type: {weight: 0.1, values: [i, ii]}
    mm: {weight: 0.1, bins: [0, 10]}
"""


@pytest.fixture
def own_metadata(tmp_path):
    folder = tmp_path / "own data"
    folder.mkdir()
    for number, name in enumerate("abc"):
        Image.new("RGB", (20, 20), (90 + 20 * number, 20, 30)).save(folder / f"{name}.png")
    (folder / "t.csv").write_text(OWN)
    (folder / "manifest.yaml").write_text(OWN_MANIFEST)
    (tmp_path / "run.yaml").write_text(OWN_CONFIG)
    return folder


def told_of(data, *words):
    done = CliRunner().invoke(app, ["doctor", "site", "--json", "--data-dir", str(data), *map(str, words)])
    assert done.exit_code in (0, 1), done.output
    found = json.loads(done.stdout)["findings"]
    return {subject: [f"{line['status']} {line['message']} → {line['remedy']}" for line in found
                      if line["subject"] == subject] for subject in {line["subject"] for line in found}}  # fmt: skip


def test_the_doctor_knows_the_classes_and_metadata_of_the_runs_configuration(own_metadata, tmp_path):
    told = told_of(own_metadata, "--config", tmp_path / "run.yaml")
    assert told["classes"] == ["ok melanoma 1, naevus 2 → "]
    (skin,) = told["skin_type"]
    assert skin.startswith("warn no image has a value")
    assert "metadata: {skin_type: column}" in skin
    assert "did you mean 'skin_type' by the manifest's 'skin_typ'?" in skin
    (bins,) = told["mm"]
    assert "'-1.0' (1 images) is not in the vocabulary and counts as unknown; it lies in none of the bins" in bins
    (unused,) = told["metadata"]
    assert "the run does not use the manifest's room, skin_typ" in unused
    assert "the run sees skin_type, mm (model.metadata)" in unused
    assert "sex" not in told, "which this run does not see"
    mended = OWN_MANIFEST.replace("skin_typ:", "skin_type:").replace("  room: room\n", "")
    (own_metadata / "manifest.yaml").write_text(mended)
    told = told_of(own_metadata, "--config", tmp_path / "run.yaml", "--set", "model.classes=[mel,naevus]")
    assert "'vii' (1 images) is not in the vocabulary" in told["skin_type"][0]
    assert "metadata: skin_type: values: {vii: …} with one of i, ii" in told["skin_type"][0]
    assert "metadata" not in told
    assert "nearest is 'mel'" in told["classes"][0]


def test_the_doctor_without_a_configuration_says_what_it_does_not_check(own_metadata):
    told = told_of(own_metadata, "--classes", "melanoma,naevus")
    (unchecked,) = told["metadata"]
    assert "own columns are not checked: mm, room, skin_typ → give the run's settings" in unchecked
    assert "no image has a value" in told["sex"][0]
    assert told_of(own_metadata, "--preset", "demo")["classes"][0].startswith("FAIL labels that are no class")


def test_the_doctor_compares_pixels_as_a_run_does(tmp_path):
    (tmp_path / "mel").mkdir(), (tmp_path / "nv").mkdir()
    picture = Image.effect_mandelbrot((300, 300), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    picture.save(tmp_path / "mel/a.png")
    picture.save(tmp_path / "nv/b.png", compress_level=1)
    other = picture.copy()
    other.putpixel((150, 150), (255, 0, 0))
    other.save(tmp_path / "nv/c.png")
    assert (tmp_path / "mel/a.png").read_bytes() != (tmp_path / "nv/b.png").read_bytes()
    found = check_data(tmp_path, None, Expected(("mel", "nv")))
    lines = [finding.message for finding in found if finding.subject == "duplicates"]
    assert lines[0] == "duplicates by content: 1 of 3 images are copies of others: mel/a.png = nv/b.png"


def test_few_missing_images_are_a_warning_and_more_a_fault(hospital):
    images = sorted(hospital.rglob("*.jpg"))
    for image in images[:8]:
        image.unlink()
    assert exit_code(check_data(hospital, None, Expected())) == 0, "8 of 160 are 5 %"
    images[8].unlink()
    assert exit_code(check_data(hospital, None, Expected())) == 1
