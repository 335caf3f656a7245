"""Names that plugins add: they work like fedskew's own, runs record whose they are, and faults are one clear error."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from builders import MICRO, run_here, tiny_config
from safetensors.torch import load_file
from typer.testing import CliRunner

import fedskew
from fedskew import plugins
from fedskew.cli import vocabulary
from fedskew.cli.main import app
from fedskew.config import ConfigError, load_config
from fedskew.config.load import load_saved, preset_names
from fedskew.methods import make_method
from fedskew.ops.bundle import bundle_hash
from fedskew.ops.review import read_bundle
from fedskew.plugins import PluginError, load_plugin, load_plugins, taking_part
from fedskew.pruning.criteria import make_criterion
from fedskew.pruning.observe import Observation
from fedskew.runs.folder import RunFolderError
from fedskew.runs.lineage import about_model
from fedskew.runs.start_checks import check_combination

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```bash\n(.*?)\n```", PAGE, re.DOTALL)
TINY = (f"model.name={MICRO} data.generated-images=160 data.open=0.2 run.threads=1 train.threads=1 train.device=cpu "
        "train.batch-size=16 prune.batch-size=16 train.warm-start-epochs=0 prune.first-round=1 "
        "federation.rounds=1")  # fmt: skip
CRITERION = """
from fedskew.pruning.criteria import Fixed, register_criterion
@register_criterion("{name}")
def make(settings):
    return lambda seen: Fixed(seen.norms.mean((0, 1, 2)) * {factor})
"""


@pytest.fixture(autouse=True)
def forgotten():
    """What a test loads is gone after it."""
    undo = plugins.snapshot()
    yield
    undo()


def written(folder: Path, name: str = "mine.py", content: str = CRITERION.format(name="mine", factor=1)) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[3])
def test_the_commands_of_the_page_run_with_the_files_of_the_page(generated, here, command):
    for name, content in FILES.items():
        written(here, name, content)
    program, *words = shlex.split(command)
    assert program == "fedskew"
    done = call(*words, "--nodes", 2, "--name", "own", "--set", TINY)
    assert done.exit_code == 0, done.output
    name = words[2]
    (line,) = (here / "runs" / "own" / "starts.jsonl").read_text().splitlines()
    assert json.loads(line)["plugins"] == {name: hashlib.sha256((here / name).read_bytes()).hexdigest()}


def test_the_criterion_of_the_page_is_the_largest_weight(here):
    load_plugin(written(here, "max_norm.py", FILES["max_norm.py"]))
    weights = [torch.tensor([[3.0, -5.0], [1.0, 2.0]]), torch.tensor([[4.0], [-3.0]])]  # each [units, values]
    seen = Observation("key", torch.zeros(1, 1, 1, 2), torch.ones(1, 1, dtype=torch.bool), weights)
    assert make_criterion("max-norm", reading="pool", seed=0)(seen).scores().tolist() == [5.0, 3.0]


def test_the_method_of_the_page_trains_the_head_alone(generated, here):
    load_plugin(written(here, "head_only.py", FILES["head_only.py"]))
    config = tiny_config(prune={"criterion": "none"}, federation={"method": "head-only", "rounds": 1},
                         run={"output_dir": str(here)})  # fmt: skip
    folder = run_here(config, 2)
    before, after = (load_file(folder.path / "checkpoints" / f"round-{number:04d}" / "model.safetensors")
                     for number in (0, 1))  # fmt: skip
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier", "embeddings"}


def test_a_preset_has_a_name_and_gives_way_to_what_is_set(here):
    load_plugin(written(here, "short.py", FILES["short.py"]))
    config = load_config("short", overrides="federation.rounds=7")
    assert (config.preset, config.train.lr, config.federation.rounds) == ("short", 1e-3, 7)
    assert "short" in preset_names()
    with pytest.raises(ConfigError, match=r"unknown preset 'shrt'; did you mean short\?"):
        load_config("shrt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("import nowhere_at_all", r"mine\.py cannot be loaded: ModuleNotFoundError: .*nowhere_at_all.* \(line 1\)"),
        ("x = 1\n\nx.y", r"AttributeError: .* \(line 3\)"),
        ("def f(:", "SyntaxError"),
        ("x = 1", "it registers nothing: register_criterion, register_method and register_preset"),
        (CRITERION.format(name="random", factor=1), r"prune\.criterion random is there already; choose another name"),
        (CRITERION.format(name="none", factor=1), r"prune\.criterion none is there already"),
        (CRITERION.format(name="two words", factor=1), "cannot be called 'two words'"),
        ("from fedskew.methods import register_method\nregister_method('auto')(print)", "method auto is there already"),
        (
            "from fedskew.config.load import register_preset\nregister_preset('demo', {})",
            "preset demo is there already",
        ),
        (
            "from fedskew.config.load import register_preset\nregister_preset('x', {'train': {'ler': 1}})",
            r"unknown key train\.ler; did you mean train\.lr\?",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_clear_error(here, content, told):
    with pytest.raises(PluginError, match=told):
        load_plugin(written(here, content=content))
    done = call("simulate", "--plugin", "mine.py", "--nodes", 2)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert done.stderr.startswith("fedskew: plugin ")


def test_what_half_a_plugin_registered_does_not_stay(here):
    path = written(here, content=CRITERION.format(name="mine", factor=1) + "raise ValueError('late')")
    with pytest.raises(PluginError, match="ValueError: late"):
        load_plugin(path)
    assert not plugins.loaded()
    with pytest.raises(ConfigError, match=r"is 'mine', expected one of skewness, .*--plugin"):
        make_criterion("mine", reading="pool", seed=0)
    assert load_plugin(written(here)).names == {("prune.criterion", "mine")}, "once it is mended, it can be loaded"


def test_a_file_is_run_once_and_another_of_its_name_is_refused(here):
    assert load_plugin(written(here)) is load_plugin("mine.py")
    (here / "other").mkdir()
    other = written(here / "other", content=CRITERION.format(name="theirs", factor=1))
    with pytest.raises(PluginError, match=r"two plugins are called mine\.py"):
        load_plugin(other)
    with pytest.raises(PluginError, match=r"nowhere\.py cannot be read: No such file"):
        load_plugin("nowhere.py")


def test_only_plugins_whose_names_are_used_take_part(here):
    mine = load_plugin(written(here))
    load_plugin(written(here, "idle.py", CRITERION.format(name="idle", factor=1)))
    config = tiny_config(prune={"criterion": "mine", "rule": "share"})
    assert taking_part(config) == {"mine.py": mine.sha256}
    assert taking_part(tiny_config()) == {}
    arch = fedskew.model.catalogue.dense_architecture(config.model)
    assert about_model(config, arch, 1, "")["lineage"]["plugins"] == {"mine.py": mine.sha256}
    assert "plugins" not in about_model(tiny_config(), arch, 1, "")["lineage"]


@pytest.fixture
def own_run(generated, here):
    """The folder of a run by a criterion of a plugin, which is forgotten again."""
    undo = plugins.snapshot()
    load_plugin(written(here))
    prune = {"criterion": "mine", "rule": "share", "batch_size": 16}
    folder = run_here(tiny_config(prune=prune, federation={"rounds": 1}, run={"output_dir": str(here)}), 2)
    undo()
    return folder.path


def test_a_run_goes_on_with_its_plugin_only(own_run, here):
    again = ("simulate", "--resume", own_run, "--set", "federation.rounds=2")
    before = {path: path.stat().st_mtime_ns for path in own_run.rglob("*") if path.name != ".lock"}
    done = call(*again)
    assert (done.exit_code, "mine.py (SHA-256" in done.stderr, "--plugin" in done.stderr) == (2, True, True), (
        done.output
    )
    undo = plugins.snapshot()
    written(here, content=CRITERION.format(name="mine", factor=-1))
    done = call(*again, "--plugin", "mine.py")
    assert (done.exit_code, "was begun with another plugin mine.py" in done.stderr) == (2, True), done.output
    assert {path: path.stat().st_mtime_ns for path in own_run.rglob("*") if path.name != ".lock"} == before
    undo()
    written(here)
    done = call(*again, "--plugin", "mine.py")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (own_run / "starts.jsonl").read_text().splitlines()]
    assert [list(line["plugins"]) for line in lines] == [["mine.py"]] * 2


def test_a_run_can_be_looked_at_without_its_plugin(own_run):
    assert load_saved(own_run / "config.yaml").prune.criterion == "mine"
    assert fedskew.load(own_run).classes
    assert call("compare", own_run).exit_code == 0
    done = call("plan", own_run)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "prune.criterion is 'mine', expected one of" in done.stderr
    assert call("plan", own_run, "--plugin", "mine.py").exit_code == 0


def test_what_a_person_gives_is_held_against_the_names_at_once(own_run):
    for give in (lambda text: load_config("demo", overrides=text),
                 lambda text: load_saved(own_run / "config.yaml", overrides=text)):  # fmt: skip
        with pytest.raises(ConfigError, match=r"set=.*prune\.criterion is 'rndom', .*did you mean random\?"):
            give("prune.criterion=rndom")
        with pytest.raises(ConfigError, match=r"federation\.method is 'averge', .*did you mean average\?"):
            give("federation.method=averge")


@pytest.mark.parametrize(
    ("method", "criterion", "told"),
    [("average", "skewness", "prunes nothing"), ("skewness", "none", "prunes, and"), ("mine", "none", "is 'mine'")],
)
def test_a_method_must_fit_its_criterion_and_exist(method, criterion, told):
    config = tiny_config(federation={"method": method}, prune={"criterion": criterion})
    with pytest.raises(ConfigError, match=told):
        check_combination(config)


@pytest.mark.parametrize(
    ("method", "criterion", "made"),
    [("auto", "none", "Average"), ("auto", "random", "SkewnessPruning"), ("average", "none", "Average"),
     ("skewness", "random", "SkewnessPruning")],
)  # fmt: skip
def test_the_method_is_the_one_that_is_asked_for(method, criterion, made):
    config = tiny_config(federation={"method": method}, prune={"criterion": criterion, "rule": "share"})
    assert type(make_method(config)).__name__ == made


def test_a_folder_of_the_app_is_loaded_and_shipped(here, monkeypatch):
    for name in (
        "LICENSE",
        "README.md",
        "clientapp.py",
        "conf",
        "fedskew",
        "plugins",
        "pyproject.toml",
        "serverapp.py",
    ):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, here / name)
    before = bundle_hash(here)
    written(here / "plugins")
    written(here / "plugins", "_not_this.py", "raise ValueError")
    assert bundle_hash(here) != before, "a site approves it with the rest"
    assert "plugins/mine.py" in read_bundle(here).files
    load_plugins(app=here)
    assert [plugin.name for plugin in plugins.loaded()] == ["mine.py"]
    for name in ("clientapp.py", "serverapp.py"):
        assert "load_plugins(app=Path(__file__).resolve().parent)" in (here / name).read_text()


def test_an_installed_package_brings_plugins(here, monkeypatch):
    (here / "clinic-1.0.dist-info").mkdir()
    (here / "clinic-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: clinic\nVersion: 1.0\n")
    (here / "clinic-1.0.dist-info" / "entry_points.txt").write_text("[fedskew.plugins]\nours = clinic_criteria\n")
    path = written(here, "clinic_criteria.py", CRITERION.format(name="clinic", factor=1))
    monkeypatch.syspath_prepend(str(here))
    load_plugins()
    load_plugins()
    (plugin,) = plugins.loaded()
    assert (plugin.name, plugin.names) == ("clinic_criteria", {("prune.criterion", "clinic")})
    assert plugin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_flowers_own_run_takes_plugins_from_the_bundle_alone(here):
    written(here)
    done = call("run", "--plugin", "mine.py", "--dry-run")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "Put the file into plugins/ beside clientapp.py" in done.stderr


def test_a_study_gives_its_plugins_to_every_run(generated, here):
    written(here)
    (here / "study.yaml").write_text(
        f"preset: demo\nnodes: 2\nseeds: [0]\nset: {TINY} prune.criterion=mine prune.rule=share\ncells:\n  own: {{}}\n"
    )
    assert "prune.criterion is 'mine'" in call("sweep", "study.yaml", "--out", "out").stderr
    done = call("sweep", "study.yaml", "--out", "out", "--plugin", "mine.py", "--no-pin")
    assert done.exit_code == 0, done.output
    (line,) = (here / "out" / "own-s0" / "starts.jsonl").read_text().splitlines()
    assert list(json.loads(line)["plugins"]) == ["mine.py"]


def test_resuming_in_python_names_the_missing_plugin(own_run):
    with pytest.raises(RunFolderError, match=r"begun with the plugin mine\.py"):
        fedskew.apps.simulate({"resume": str(own_run), "set": "federation.rounds=2"})


def test_a_package_without_a_checkout_looks_for_no_folder(here, monkeypatch):
    (here / "plugins").mkdir()
    written(here / "plugins", "foreign.py", "raise ValueError('not ours')")
    monkeypatch.setattr(vocabulary, "__file__", str(here / "fedskew" / "cli" / "vocabulary.py"))
    vocabulary.use_plugins()
    assert not plugins.loaded()
