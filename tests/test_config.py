"""Configuration: presets, a person's own file and overrides, each error naming the key, the place and the remedy."""

import dataclasses
import json
import math

import pytest
import yaml
from builders import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from fedskew.apps import config_from_run
from fedskew.config import Config, ConfigError, load_config, to_yaml
from fedskew.config.load import from_mapping, load_saved, preset_names, to_mapping
from fedskew.config.schema import SINKS, DataConfig, MetadataColumn, ModelConfig, PruneConfig, TrainConfig

SECTIONS = [(field.name, field.default_factory) for field in dataclasses.fields(Config) if field.name != "preset"]


def test_there_are_presets_for_every_purpose():
    assert {"demo", "ham10000-small", "ham10000", "ham10000-sites", "paper"} <= set(preset_names())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_names_itself(preset):
    config = load_config(preset)
    assert config.preset == preset
    assert from_mapping(json.loads(json.dumps(to_mapping(config))), "test") == config


def test_the_paper_preset_states_what_the_paper_states():
    config = load_config("paper")
    assert (config.federation.rounds, config.train.local_epochs, config.data.test) == (100, 3, 0.2)
    assert (config.model.image_weight, config.model.sex_weight) == (0.85, 0.05)
    assert (config.prune.criterion, config.prune.rule, config.prune.max_stage) == ("skewness", "sign", 3)
    assert (config.prune.order, config.prune.freeze, config.prune.calibrate) == ("block", True, True), "Algorithm 1"
    assert (config.prune.last_round, config.prune.interval, config.prune.steps_per_stage) == (0, 1, 1)
    assert (config.prune.min_heads, config.prune.removed, config.prune.views) == (0, "norm", 1)


@pytest.mark.parametrize("preset", ["dmo", "ham1000-small", "no such thing at all"])
def test_an_unknown_preset_names_those_that_exist(preset):
    with pytest.raises(ConfigError, match=r"demo.*ham10000-small"):
        load_config(preset)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trian.lr=1", ("trian", "train")),
        ("train.larning-rate=1", ("train.larning-rate", "set=")),
        ("prune.max-stag=1", ("prune.max-stag", "prune.max-stage")),
        ("federation.round=3", ("federation.round", "federation.rounds")),
        ("run.sed=3", ("run.sed", "run.seed")),
    ],
)
def test_an_unknown_key_names_itself_its_place_and_the_nearest(text, words):
    with pytest.raises(ConfigError) as error:
        load_config("demo", overrides=text)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "train.lr=fast",
        "train.lr=true",
        "train.lr=[1]",
        "train.lr=",
        "train.lr=null",
        "train.batch-size=2.5",
        "train.batch-size=true",
        "train.batch-size=1e2",
        "train.flips=1",
        "train.flips=perhaps",
        "model.classes=nv",
        "model.classes=[nv, [mel]]",
        "prune.criterion=3",
        "prune.mlp-group=half",
        "prune.mlp-group=²",
        "prune.mlp-group=0",
    ],
)
def test_a_wrong_type_is_named_and_nothing_is_converted_with_loss(text):
    key = text.partition("=")[0]
    with pytest.raises(ConfigError) as error:
        load_config(overrides=text.replace("[nv, [mel]]", "[nv,[mel]]"))
    assert key in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "train.lr=-1e-3",
        "train.lr=2",
        "train.lr=.nan",
        "train.clip-norm=.nan",
        "train.colour=1.0",
        "train.warmup=1",
        "data.test=0",
        "data.alpha=.nan",
        "data.alpha=.inf",
        "data.generated-images=10",
        "federation.rounds=0",
        "federation.rounds=-3",
        "federation.max-weight-ratio=.inf",  # ended the run after its first round: no whole number is as large
        "federation.norm-bound=.inf",
        "federation.round-deadline=.inf",
        "federation.malicious-nodes=-1",
        "prune.rollback=.nan",
        "prune.rollback=-2",
        "prune.batch-size=0",
        "prune.criterion=skew",
        "prune.reading=median",
        "prune.views=3",
        "prune.order=layer",
        "run.seed=-1",
        "run.seed=4294967296",
        "run.best-metric=loss",
        "model.image-size=-1",
        "model.image-size=100000",
        "model.drop-path=1",
        "model.classes=[nv,nv]",
        "model.classes=[nv]",
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(text):
    with pytest.raises(ConfigError) as error:
        load_config(overrides=text)
    assert text.partition("=")[0] in str(error.value)
    assert "set=" in str(error.value), "and where it was set"


@pytest.mark.parametrize("word", ["on", "007", "null"])
@pytest.mark.parametrize("key", ["data.fit", "data.split-by", "data.partition", "data.clients"])
def test_a_word_is_what_was_typed_whether_its_words_are_a_type_or_not(key, word):
    with pytest.raises(ConfigError, match=f"{key} is '{word}', expected one of "):
        load_config(overrides=f"{key}={word}")


def test_nothing_is_left_for_clients_is_said():
    with pytest.raises(ConfigError, match="nothing is left"):
        DataConfig(test=0.6, open=0.4)
    assert DataConfig(test=0.6, open=0.4, clients="own").open == 0.4


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("train.lr=3e-4", "train", "lr", 3e-4),
        ("train.lr=3E-4", "train", "lr", 3e-4),
        ("train.lr=0.0003", "train", "lr", 3e-4),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.clip_norm=2", "train", "clip_norm", 2.0),
        ("prune.max-stage=2", "prune", "max_stage", 2),
        ("prune.max_stage=2", "prune", "max_stage", 2),
        ("prune.mlp-group=8", "prune", "mlp_group", "8"),
        ("train.flips=false", "train", "flips", False),
        ("model.classes=[nv,mel]", "model", "classes", ("nv", "mel")),
        ("data.dir='/a path/with spaces'", "data", "dir", "/a path/with spaces"),
        ('data.dir="/a=b"', "data", "dir", "/a=b"),
        ("run.name=", "run", "name", ""),
        ("run.name=1_000", "run", "name", "1_000"),
        ("run.name=007", "run", "name", "007"),
        ("run.name=on", "run", "name", "on"),
        ("run.name=1.50", "run", "name", "1.50"),
        ("run.name=2026-01-02", "run", "name", "2026-01-02"),
        ("run.name=null", "run", "name", "null"),
    ],
)
def test_overrides_mean_what_is_written(text, section, key, value):
    found = getattr(getattr(load_config("demo", overrides=text), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["lr=3", "train.lr", "train.=3", ".lr=3", "train.lr='3", "=", "train.lr={"])
def test_an_override_that_cannot_be_read_is_shown(text):
    with pytest.raises(ConfigError, match="set="):
        load_config(overrides=text)


def test_later_sources_win(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("train: {lr: 0.01, batch-size: 8}\nprune: {criterion: none}\n")
    config = load_config("demo", file=str(own), overrides="train.batch-size=4 train.batch-size=5")
    demo = load_config("demo")
    assert (config.train.lr, config.train.batch_size, config.prune.criterion) == (0.01, 5, "none")
    assert config.federation == demo.federation
    assert config.preset == "demo"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train: {lr: 7}", ("own.yaml", "train.lr")),
        ("train: {ler: 7}", ("own.yaml", "train.ler", "train.lr")),
        ("trane: {lr: 7}", ("own.yaml", "trane", "train")),
        ("train: 3", ("own.yaml", "train")),
        ("train:", ("own.yaml", "train")),
        ("- train", ("own.yaml", "list")),
        ("train: {lr: [}", ("own.yaml", "YAML")),
        ("\x00", ("own.yaml",)),
        ("train: !!python/object/apply:os.system [true]", ("own.yaml",)),
        ("? [a, b]\n: {}", ("own.yaml",)),
    ],
)
def test_a_faulty_file_of_ones_own_is_named(tmp_path, content, words):
    own = tmp_path / "own.yaml"
    own.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(file=own)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("name", ["missing.yaml", ""], ids=["missing", "a folder"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_config(file=tmp_path / name)


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "own.yaml").write_text("# nothing yet\n")
    assert load_config(file=tmp_path / "own.yaml") == load_config()


@st.composite
def configs(draw):
    """Any valid configuration."""
    built = {}
    for name, kind in SECTIONS:
        values = {field.name: draw(values_of(field)) for field in dataclasses.fields(kind)}
        values |= {"test": 0.3, "open": draw(st.floats(0.01, 0.6))} if name == "data" else {}
        values |= {"mlp_group": draw(st.sampled_from(["ratio", "width", "8"]))} if name == "prune" else {}
        if name == "run":
            values |= {"name": draw(TEXT.filter(is_folder_name)), "sinks": ",".join(draw(st.lists(SINK_NAMES)))}
        if name == "model":
            values |= draw(st.sampled_from(STARTS))
            values["metadata"] = draw(st.lists(COLUMNS, max_size=3, unique_by=lambda column: column.name).map(tuple))
            if values["metadata"]:
                values |= dict.fromkeys(("sex_weight", "age_weight", "localization_weight"), 0.05)
        built[name] = kind(**values)
    return Config(**built, preset=draw(TEXT))


def is_folder_name(text):
    return text not in (".", "..") and not set(text) & set("/\\")


# a run starts from one thing at most
STARTS = tuple(
    dict.fromkeys(("pretrained", "from_run", "architecture_from"), "") | {"head": "new"} | one
    for one in ({}, {"pretrained": "a"}, {"from_run": "a"}, {"architecture_from": "a"},
                {"pretrained": "a", "head": "keep", "image_only": True})
)  # fmt: skip


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ["yes", "null", "1e5", "0x1f", "~", "2026-01-02", " a ", "-", "{}", "1_000", "#", "a: b", "'", '"']
)


SINK_NAMES = st.sampled_from(SINKS)
WORDS = st.text("abcXYZ é1", min_size=1, max_size=8).filter(str.strip)
WEIGHTS = st.floats(0, 1)
COLUMNS = st.one_of(
    st.builds(MetadataColumn, st.sampled_from(["sex", "age", "localization"]), WEIGHTS),
    st.builds(
        MetadataColumn, WORDS, WEIGHTS, st.lists(WORDS, min_size=1, max_size=3, unique_by=str.casefold).map(tuple)
    ),
    st.builds(
        lambda name, weight, bins: MetadataColumn(name, weight, bins=tuple(sorted(bins))),
        WORDS, WEIGHTS, st.sets(st.floats(-1e9, 1e9), min_size=1, max_size=4),
    ),
)  # fmt: skip


def values_of(field):
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    if choices:
        return st.sampled_from(choices)
    kind = type(field.default)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low, high if high is not None else 10**6)
    if kind is float:
        return st.floats(low, high if high is not None else 1e9, allow_nan=False)
    return st.lists(TEXT.filter(bool), min_size=2, max_size=4, unique=True).map(tuple) if kind is tuple else TEXT


@settings(max_examples=25)
@given(configs())
def test_any_configuration_comes_back_from_yaml_and_from_a_message(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    found = load_config(file=path)
    assert dataclasses.replace(found, preset=config.preset) == config
    assert found.preset == (config.preset or "defaults")
    assert from_mapping(json.loads(json.dumps(to_mapping(config))), "message") == config


def test_every_setting_says_what_it_is_for_and_its_default_is_valid():
    for name, kind in SECTIONS:
        kind()
        for field in dataclasses.fields(kind):
            assert len(field.metadata["doc"]) > 8, f"{name}.{field.name}"


@pytest.mark.parametrize("section", [name for name, _ in SECTIONS])
def test_a_configuration_is_frozen(section):
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, section, None)
    part = getattr(config, section)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, dataclasses.fields(part)[0].name, None)


@pytest.mark.parametrize(
    ("kind", "values"),
    [(TrainConfig, {"lr": math.nan}), (PruneConfig, {"rule": "x"}), (ModelConfig, {"image_weight": 2})],
)
def test_bounds_hold_however_a_section_is_built(kind, values):
    with pytest.raises(ConfigError):
        kind(**values)
    with pytest.raises(ConfigError):
        dataclasses.replace(kind(), **values)


def test_flowers_run_configuration_is_taken(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("prune: {share: 0.4}")
    config = config_from_run(
        {"preset": "demo", "config": str(own), "set": "train.lr=1e-4 data.dir=/x", "data-dir": "/y", "output-dir": "/z"}
    )
    assert (config.train.lr, config.prune.share) == (1e-4, 0.4)
    assert (config.data.dir, config.data.source, config.run.output_dir) == ("/y", "folder", "/z")
    assert config_from_run({"preset": "demo"}) == load_config("demo")


def test_the_mapping_of_a_message_is_checked_as_strictly():
    mapping = to_mapping(tiny_config())
    assert yaml.safe_load(to_yaml(tiny_config())) == mapping
    for broken in ({"train": {"lr": "NaN"}}, {"train": []}, {"nonsense": {}}, {"train": {"lr": math.nan}}):
        with pytest.raises(ConfigError, match="the server"):
            from_mapping(mapping | broken, "the server's configuration")


def test_keys_of_earlier_versions_are_taken_and_the_new_name_is_said(tmp_path, caplog):
    old = tmp_path / "config.yaml"
    old.write_text("prune: {method: l1-norm, guard: 0.03, rule: share}\n")
    prune = load_config(file=old).prune
    assert (prune.criterion, prune.rollback, prune.rule) == ("l1-norm", 0.03, "share")
    assert f"{old}: prune.method is called prune.criterion now" in caplog.text
    assert f"{old}: prune.guard is called prune.rollback now" in caplog.text
    caplog.clear()
    assert load_saved(old).prune == prune
    assert caplog.text == "", "what an earlier version wrote into its run's folder is nobody's to mend"
    with pytest.raises(ConfigError, match=r"prune\.criterion is there twice"):
        load_config(overrides="prune.method=none prune.criterion=random")
