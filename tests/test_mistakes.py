"""What people do wrong, forty times and more: one message that names the thing, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from builders import MICRO
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from fedskew import files as atomic
from fedskew.apps import make_client_app, run_on
from fedskew.cli.main import app
from fedskew.federation.grids import LocalGrid
from fedskew.learning import local
from fedskew.learning.server_data import ServerData
from fedskew.learning.train import TrainingError

TINY = [f"model.name={MICRO}", "data.generated-images=160", "data.open=0.2", "federation.rounds=1", "run.threads=1"]
HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"


@pytest.fixture
def here(tmp_path, monkeypatch, generated, finished_run):
    """A working directory with what people have lying about, and `run`, a finished run of theirs."""
    monkeypatch.chdir(tmp_path)
    texts = {
        "bad.yaml": "train: {lr: [1,\n", "list.yaml": "- 1\n", "typo.yaml": "trian: {lr: 1}\n",
        "nothing.yaml": "train:\n",
        "some/notes.txt": "x", "file": "x", "no-images/HAM10000_metadata.csv": HAM + "L1,I1,mel,histo,50,male,back,v\n",
        "no-column/HAM10000_metadata.csv": HAM.replace(",dx,", ",diagnosis,") + "L1,I1,mel,histo,50,male,back,v\n",
        "own/manifest.yaml": "file: table.csv\nimage: picture\nlabel: what\n",
        "own/table.csv": "photo;what\na.png;mel\n",
        "flwr/config.toml": '[superlink.local-simulation]\naddress = "host:8000"\n',
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.yaml").write_bytes("run: {name: größe}\n".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "HAM10000_metadata.csv").write_text(HAM + "L1,I1,mel,histo,50,male,back,v\n")
    (tmp_path / "broken" / "I1.jpg").write_bytes(b"\xff\xd8 not an image")
    (tmp_path / "comma").mkdir()  # as a German spreadsheet saves it, with one number that may be two
    rows = "a.jpg;Melanom;61,5;Rücken\nb.jpg;Nävus;1,234;Rücken\nc.jpg;unklar;40,5;Rücken\n"
    (tmp_path / "comma" / "table.csv").write_bytes(f"Bild;Befund;Alter;Ort\n{rows}".encode("latin-1"))
    (tmp_path / "comma" / "manifest.yaml").write_text(
        "file: table.csv\nimage: Bild\nlabel: Befund\nage: Alter\nlabels: {Melanom: mel, Nävus: nv}\n"
    )
    for name in "abc":
        Image.new("RGB", (40, 30), (200, ord(name), 90)).save(tmp_path / "comma" / f"{name}.jpg")
    (tmp_path / "few").mkdir()
    rows = [f"L{i},I{i},{'mel' if i % 2 else 'nv'},histo,50,male,back,v\n" for i in range(4)]
    (tmp_path / "few" / "HAM10000_metadata.csv").write_text(HAM + "".join(rows))
    for i in range(4):
        Image.new("RGB", (40, 30), (200, 150, 10 * i)).save(tmp_path / "few" / f"I{i}.jpg")
    save_file({"conv1.weight": torch.zeros(3), "layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "cnn.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.pth")
    shutil.copytree(finished_run.path, tmp_path / "run")
    return tmp_path


def contents(*roots: Path) -> dict[str, bytes | None]:
    """Every file and folder, with what is in it. Cached images may come: they are no part of a run."""
    found = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if "cache" not in path.relative_to(root).parts and path.name != ".lock":
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def told(*words: str, code: int = 2) -> str:
    """What is said, in one line; the exit code is by default that of a mistake, and there is no traceback."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.exit_code}: {result.output} {result.exception!r}"
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def words_of(mistake: str) -> list[str]:
    """The command line of a mistake: a tiny simulated run with one thing wrong in it, or another command."""
    words = mistake.split()
    if words[0] in OTHERS:
        return words
    if words[0] not in ("simulate", "run"):
        words = ["simulate", *words]
    if "--resume" in words or "--preset" in words:
        return words
    return [words[0], *(word for setting in TINY for word in ("--set", setting)), *words[1:]]


OTHERS = ("compare", "plot", "evaluate", "plan", "focus", "participation", "options", "manifest", "credentials",
          "sweep", "table", "records")  # fmt: skip
# the mistake: what the message must hold
MISTAKES = {
    # names
    "--preset dmo": ("unknown preset 'dmo'", "did you mean demo?", "ham10000-small"),
    "--set train.ler=1": ("unknown key train.ler", "did you mean train.lr?"),
    "--set trian.lr=1": ("unknown section 'trian'", "did you mean train?"),
    "--set nonsense": ("'nonsense'", "section.key=value"),
    "--set learning_rate=0.1": ("'learning_rate=0.1'", "section.key=value", "did you mean train.lr?"),
    "--set train.learning-rate=0.1": ("unknown key train.learning-rate", "did you mean train.lr?"),
    "--set federation.clients=6": ("unknown key federation.clients", "--nodes"),
    "--set model.name=swinv2_tiny_window8_256": ("of another family (swinv2)", "not supported yet"),
    "--set prune.warm-start-epochs=3": ("prune.warm-start-epochs", "train.warm-start-epochs"),
    "--set model.name=swin_micro": ("model.name 'swin_micro'", f"did you mean {MICRO}?"),
    "--set run.name=a/b": ("run.name is 'a/b'", "expected the name of a folder", "run.output-dir"),
    "--set run.name=..": ("run.name is '..'", "expected the name of a folder"),
    "--set run.name=run --output-dir .": ("run is there already", "resume=", "another run.name"),
    # types, bounds, choices
    "--set train.lr=fast": ("train.lr must be a number", "'fast'"),
    "--set train.flips=3": ("train.flips must be true or false", "3"),
    "--set federation.rounds=2.5": ("federation.rounds must be a", "2.5"),
    "--set train.lr=7": ("train.lr is 7.0", "at most 1"),
    "--set train.lr=.nan": ("train.lr is nan", "at least 0"),
    "--set federation.rounds=0": ("federation.rounds is 0", "at least 1"),
    "--set prune.criterion=skewnes": ("prune.criterion is 'skewnes'", "expected one of", "skewness"),
    "--set model.classes=[nv,nv]": ("model.classes", "different names"),
    "--set model.classes=nv": ("model.classes must be a list", "'nv'"),
    # files of settings
    "--config missing.yaml": ("missing.yaml does not exist",),
    "--config bad.yaml": ("bad.yaml cannot be read as YAML",),
    "--config latin.yaml": ("latin.yaml cannot be read as YAML in UTF-8",),
    "--config list.yaml": ("list.yaml", "expected sections", "found a list"),
    "--config typo.yaml": ("typo.yaml", "unknown section 'trian'"),
    "--config nothing.yaml": ("nothing.yaml", "section 'train' must hold keys"),
    "--config empty": ("empty cannot be read", "directory"),
    # settings that do not go together
    "--set data.test=0.6 --set data.open=0.6": ("data.test + data.open is 1.20", "nothing is left for the clients"),
    "--set model.image-size=30": ("image_size 30", "patch"),
    "--set prune.mlp-group=abc": ("prune.mlp-group is 'abc'", "expected ratio, width"),
    "--set prune.mlp-group=7": ("prune.mlp-group 7", "hidden width 96", "expected ratio, width or a number that"),
    "--set train.rand-augment=abc": ("train.rand-augment: RandAugment policy 'abc' cannot", "e.g. rand-m5-n2-mstd0.5"),
    "--set federation.evaluate-clients=true --set data.validation=0": ("data.validation is 0", "Raise data.validation"),
    "--set prune.rollback=0.1 --set data.held-back=0": ("prune.rollback", "data.held-back is 0", "raise data.held"),
    # weights
    "--set model.pretrained=/nowhere.pth": ("model.pretrained", "/nowhere.pth does not exist", "absolute path"),
    "--set model.pretrained=HERE/cnn.safetensors --set model.pretrained-sha256=00": (
        "cnn.safetensors has SHA-256", "model.pretrained-sha256 says 00", "fetch the file again",
    ),
    "--set model.pretrained=HERE/cnn.safetensors": (
        "cnn.safetensors does not fit", "tensors missing", "expected the weights of a timm Swin",
    ),
    "--set model.pretrained=HERE/junk.safetensors": ("junk.safetensors is no safetensors file",),
    "--set model.pretrained=HERE/pickle.pth": ("pickle.pth is a pickle", "set model.pretrained-sha256="),
    "--set model.pretrained=swin_tinyy": ("'swin_tinyy' is neither a file nor a timm tag", "set model.pretrained to"),
    "--set model.pretrained=resnet18.a1_in1k": ("resnet18.a1_in1k is a ResNet", "expected the tag of a Swin v1"),
    "--set model.pretrained=HERE/cnn.safetensors --set model.stem=conv": ("has timm's stem", "set model.stem=patch"),
    # the machine
    "--set train.device=cuda": ("train.device is cuda", "set train.device=auto or cpu"),
    "--output-dir file": ("no run folder can be made in", "file is no folder", "run.output-dir"),
    "--output-dir file/deeper": ("no run folder can be made in", "file is no folder", "run.output-dir"),
    "--set data.cache-dir=HERE/file": ("image cache in", "set data.cache-dir"),
    # data
    "--preset ham10000-small": ("no data set given: give --data-dir DIR", "data.dir"),
    "run --preset ham10000-small": ("no data set given: give --data-dir DIR", "data.dir"),
    "--data-dir nowhere": ("nowhere does not exist", "give the path of a data set"),
    "--data-dir empty": ("empty is empty", "give the path of a data set"),
    "--data-dir file": ("file is neither a folder nor a readable archive", ".zip"),
    "--data-dir no-images": ("not one image of its 1 rows", "put the images beside the table"),
    "--data-dir broken": ("broken: not one of 1 images can be read",),
    "--data-dir few": ("few leaves 0 open and 2 test images of 4 groups that stay together", "raise data.open"),
    "--data-dir some": ("some is no data set", "manifest.yaml"),
    "--data-dir no-column": ("no-column", "HAM10000_metadata"),
    "--data-dir own": ("table.csv", "picture"),
    "--data-dir comma": (
        "table.csv has 2 faults", "line 3: '1,234' may be 1.234 or 1234", "line 4: diagnosis 'unklar' is not among",
        "with null to leave such images out",
    ),
    "--set data.manifest=/nowhere.yaml": ("/nowhere.yaml", "cannot be read"),
    "--set model.classes=[nv,mel]": ("label 'bcc' is not one of the classes nv, mel", "manifest"),
    # nodes
    "--nodes 0": ("'--nodes': 0", "x>=1"),
    "--nodes 2 --set federation.quorum=3": ("federation.quorum is 3, and 2 nodes", "--nodes 3", "quorum=2 or less"),
    "run --nodes 2 --set federation.min-nodes=3": ("federation.min-nodes is 3, and 2 nodes", "min-nodes=2 or less"),
    "--resume run --set federation.quorum=4": ("federation.quorum is 4, and 3 nodes", "quorum=3 or less"),
    "--nodes 1000": ("1000 clients, but only", "use at most"),
    "--preset hospitals": ("data.clients=own", "set data.clients=partition", "docs/deployment.md"),
    # resuming
    "--resume run --preset demo": ("--preset demo", "goes on with its own configuration", "Leave --preset out"),
    "run --resume run --preset demo": ("--preset demo", "goes on with its own configuration", "Leave --preset out"),
    "--resume nowhere": ("nowhere", "no run folder there", "give the absolute path"),
    "--resume some": ("some", "no run folder there", "config.yaml is missing"),
    "--resume run --nodes 2": ("--nodes 2", "was begun with 3 nodes", "leave --nodes out"),
    "run --dry-run --resume run --nodes 2": ("--nodes 2", "was begun with 3 nodes", "leave --nodes out"),
    "--resume run --set prune.criterion=none": ("prune.criterion was 'skewness', is 'none'", "Start a new run"),
    "run --resume run --set prune.criterion=none": ("prune.criterion was 'skewness', is 'none'", "Start a new run"),
    "--resume run --set train.lr=0.5": ("train.lr was 0.001, is 0.5", "What may change: data.cache-dir"),
    "--resume run --set data.alpha=3": ("data.alpha was 0.5, is 3.0", "Start a new run"),
    "--resume run --set federation.rounds=1": ("federation.rounds was 2, is 1", "rounds can only become more"),
    "--resume run --set federation.rouns=9": ("unknown key federation.rouns", "did you mean federation.rounds?"),
    "--resume run --data-dir few --set federation.rounds=3": ("data.source was 'generated', is 'folder'",),
    # before a SuperLink is started
    "run --preset dmo": ("unknown preset 'dmo'", "did you mean demo?"),
    "run --set prune.criterion=random": ("prune.rule=sign removes nothing", "prune.rule=match", "prune.rule=share"),
    "--set prune.criterion=l1-norm": ("prune.rule=sign removes nothing", "prune.rule=match", "prune.rule=share"),
    "--set prune.first-round=2 --set prune.last-round=1": ("prune.first-round is 2", "Set prune.last-round=0"),
    "run --set train.device=cuda": ("train.device is cuda", "set train.device=auto or cpu"),
    "run --set train.ler=1": ("unknown key train.ler", "did you mean train.lr?"),
    "run --data-dir nowhere": ("nowhere does not exist", "give the path of a data set"),
    "run --data-dir empty": ("empty is empty", "give the path of a data set"),
    "run --data-dir own": ("table.csv", "picture"),
    "run --data-dir few --set model.classes=[nv,bcc]": ("label 'mel' is not one of the classes nv, bcc", "manifest"),
    "run --set data.manifest=/nowhere.yaml --data-dir few": ("/nowhere.yaml", "cannot be read"),
    "run --set model.name=resnet18": ("'resnet18' is of another family (resnet)", "not supported yet"),
    "run --set model.image-size=30": ("image_size 30", "patch"),
    "run --set model.pretrained=/nowhere.pth": ("model.pretrained", "/nowhere.pth does not exist", "absolute path"),
    "run --set model.pretrained=swin_tinyy": ("'swin_tinyy' is neither a file nor a timm tag", "set model.pretrained"),
    "run --set prune.mlp-group=7": ("prune.mlp-group 7", "hidden width 96", "expected ratio, width or a number that"),
    "run --gpus 1": ("--gpus 1, but torch", "finds no GPU here", "leave --gpus out"),
    "run --cpus 4096": ("--cpus 4096, but this machine has", "or less"),
    "run --output-dir file": ("no run folder can be made in", "file is no folder", "run.output-dir"),
    "run --set run.name=run --output-dir .": ("run is there already", "another run.name"),
    # what comes after a run, and before it
    "compare nowhere": ("nowhere", "no run folder"),
    "compare run some": ("some", "no run folder"),
    "plot run --out x.xyz": ("--out x.xyz", "no image format is called '.xyz'", ".png"),
    "plot nowhere": ("nowhere", "no run folder"),
    "evaluate nowhere": ("nowhere", "neither a model file nor a run folder"),
    "evaluate junk.safetensors --data-dir few --all": ("junk.safetensors",),
    "evaluate run --data-dir nowhere": ("nowhere does not exist",),
    "evaluate run --predictions run/predictions.npz --all": ("predictions.npz", "give --predictions another place"),
    "plan nowhere": ("nowhere is no run folder",),
    "plan run --set prune.criterion=none": ("prune.criterion=none", "--set prune.criterion=skewness"),
    "focus run --masks empty": ("empty",),
    "participation nowhere": ("nowhere",),
    "options precison": ("no setting matches 'precison'", "did you mean train.precision?"),
    "manifest empty": ("empty", "no table", "no folders by class"),
    "manifest own": ("own/manifest.yaml is there already and stays as it is", "--out"),
    "credentials --out file": ("credentials cannot be written to file", "File exists"),
    "credentials --out pki --host fl.example.org:8000": ("fl.example.org:8000",),
    "sweep missing.yaml --out s": ("missing.yaml",),
    "sweep typo.yaml --out s": ("typo.yaml",),
    "table some": ("some",),
    "records some out": ("some",),
}  # fmt: skip
CUDA = ("--set train.device=cuda", "run --set train.device=cuda", "run --gpus 1")
NOT_HERE = dict.fromkeys(CUDA, torch.cuda.is_available())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_what_was_expected_and_leaves_nothing(here, own_homes, monkeypatch, mistake):
    if NOT_HERE.get(mistake):
        pytest.skip("this machine can do that")
    before = contents(here, own_homes)
    monkeypatch.setattr("fedskew.cli.follow.OwnSuperLink", lambda *_: pytest.fail("too late"))
    said = told(*words_of(mistake.replace("HERE", str(here))))
    for part in MISTAKES[mistake]:
        assert part in said, said
    assert contents(here, own_homes) == before


def test_there_are_forty_of_them():
    assert len(MISTAKES) >= 40


def test_a_connection_that_leads_to_somebody_elses_superlink_is_no_simulation(here, own_homes, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(here / "flwr"))
    before = contents(here, own_homes)
    said = told(*words_of("run"))
    assert "flwr/config.toml gives the connection local-simulation the address host:8000" in said
    assert 'write address = ":local:", or rename that connection' in said
    assert contents(here, own_homes) == before


# Mistakes of the machine, and what ends a run on its way to the first checkpoint.


def simulated(*words: str, code: int = 2) -> str:
    return told(*words_of(" ".join(["simulate", *words])), code=code)


def test_a_home_that_cannot_be_written_is_named(here, monkeypatch):
    monkeypatch.setenv("FEDSKEW_HOME", str(here / "file" / "home"))
    before = contents(here)
    said = simulated()
    assert "file/home" in said
    assert "FEDSKEW_HOME" in said
    bare = {"preset": "demo", "set": " ".join(TINY)}
    with pytest.raises(RuntimeError, match=r"no run folder can be made in .*file/home/runs.*run\.output-dir"):
        run_on(LocalGrid(make_client_app(), 2), bare)
    assert contents(here) == before


def test_a_disk_without_room_for_one_checkpoint_is_told_before_anything_is_opened(here, monkeypatch):
    usage = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    monkeypatch.setattr("fedskew.federation.server.open_data", lambda *_: pytest.fail("too late"))
    before = contents(here)
    said = simulated()
    assert "a checkpoint of this model has 0.3 MiB, and 0.1 MiB are free in" in said
    assert "set run.output-dir to another disk" in said
    assert contents(here) == before


@pytest.mark.parametrize("file", ["split.json", "config.yaml", "starts.jsonl", "metrics.jsonl", "state.json"])
def test_a_disk_that_is_full_at_any_file_before_the_first_checkpoint_leaves_nothing(here, own_homes, monkeypatch, file):
    real, calls = os.fsync, []

    def full(handle):
        if not calls and Path(os.readlink(f"/proc/self/fd/{handle}")).name.lstrip(".").startswith(file):
            calls.append(file)
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(atomic.os, "fsync", full)
    before = contents(here, own_homes)
    said = simulated()
    assert calls == [file]
    assert "No space left on device" in said
    assert "run.output-dir" in said
    assert "resume" not in said, "there is nothing to go on in"
    assert contents(here, own_homes) == before


class Interrupted(BaseException):
    """Whatever else ends a process in an orderly way."""


@pytest.mark.parametrize("error", [TrainingError("lower train.lr"), KeyboardInterrupt(), Interrupted()])
def test_a_run_that_ends_in_its_warm_start_leaves_nothing(here, own_homes, monkeypatch, error):
    def fail(*_, **__):
        assert list((here / "runs").glob("*/config.yaml")), "it has begun"
        raise error

    monkeypatch.setattr(local, "train", fail)
    before = contents(here, own_homes)
    settings = {"preset": "demo", "set": " ".join([*TINY, "train.warm-start-epochs=1"]), "output-dir": "runs"}
    with pytest.raises(type(error)):
        run_on(LocalGrid(make_client_app(), 2), settings)
    assert contents(here, own_homes) == before


def test_a_run_that_ends_after_its_first_checkpoint_keeps_it(here, monkeypatch):
    real, calls = ServerData.evaluate, []

    def fail(self, *args, **known):
        calls.append(args)
        if len(calls) == 2:
            raise TrainingError("enough")
        return real(self, *args, **known)

    monkeypatch.setattr(ServerData, "evaluate", fail)
    assert "enough" in simulated("--set run.name=kept", code=1), "it had begun: a failed run, no mistake"
    lines = (here / "runs" / "kept" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    again = CliRunner().invoke(app, ["simulate", "--resume", "runs/kept"])
    assert again.exit_code == 0, again.output
    assert len((here / "runs" / "kept" / "metrics.jsonl").read_text().splitlines()) == 2
