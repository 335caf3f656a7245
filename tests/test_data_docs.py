"""Every example of docs/data.md is made on disk and read: the document says what happens, or this fails."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fedskew.config import load_config
from fedskew.config.schema import DataConfig
from fedskew.data.duplicates import duplicate_lines
from fedskew.data.manifest import ManifestLayout, MetadataSource
from fedskew.data.samples import VOCABULARIES, DataError, encode_metadata
from fedskew.data.sources import open_source
from fedskew.data.tables import MISSING
from fedskew.learning.datasets import open_data
from fedskew.model.catalogue import vocabularies

TEXT = (Path(__file__).resolve().parents[1] / "docs/data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Example:
    """One tree of the document and what stands below it."""

    name: str
    files: dict[str, str]  # path → of which other image it is a copy, or nothing
    texts: dict[str, bytes] = dataclasses.field(default_factory=dict)
    config: str = ""
    shown: dict[str, str] = dataclasses.field(default_factory=dict)


def files_of(tree):
    """Root and files of a tree that is drawn with lines."""
    root, *lines = tree.splitlines()
    folders, files = [], {}
    for line in lines:
        prefix, name = re.fullmatch(r"((?:│   |    )*[├└]── )(.*)", line).groups()
        depth = len(prefix) // 4 - 1
        name, _, copied = name.partition(" = ")
        folders[depth:] = [name.rstrip("/")]
        if not name.endswith("/"):
            files["/".join(folders[: depth + 1])] = copied
    return root.rstrip("/"), files


def examples():
    found = []
    for language, about, content in BLOCKS:
        if language == "tree":
            found.append(Example(*files_of(content)))
        elif language == "csv":
            name, _, encoding = about.partition(" ")
            found[-1].texts[name] = content.encode(encoding or "utf-8")
        elif (language, about) == ("yaml", "config"):
            found[-1].config = content
        elif language == "yaml":
            found[-1].texts[about] = content.encode()
        else:
            assert language == "text", language
            found[-1].shown[about] = content
    return found


EXAMPLES = examples()


def made(example, parent):
    """The example's folder on disk; every image is another picture, unless the tree says that it is a copy."""
    folder, pixels = parent / example.name, np.random.default_rng(7)
    for name, copied in example.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in example.texts:
            path.write_bytes(example.texts[name])
        elif copied:
            path.write_bytes((folder / copied).read_bytes())
        else:
            Image.fromarray(pixels.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(path)
    assert set(example.texts) <= set(example.files), "the tree shows every table"
    return folder


def aligned(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def shown_samples(source):
    rows = []
    for sample in source.samples:
        known = {"age": sample.age, "sex": sample.sex, "localization": sample.localization, "site": sample.site}
        known |= dict(sample.metadata)
        told = [f"{key} {value if isinstance(value, str) else format(value, 'g')}"
                for key, value in known.items() if value is not None]  # fmt: skip
        rows.append((sample.image_id, sample.label, f"with {sample.group}", ", ".join(told)))
    return "\n".join([*aligned(rows), *(f"note: {note}" for note in source.notes),
                      *(f"warning: {line}" for line in source.warnings)]) + "\n"  # fmt: skip


def shown_codes(source, config):
    named = dict(vocabularies(config.model))
    codes = encode_metadata(source.samples, named)
    rows = [
        (sample.image_id, ", ".join(f"{name} {code} {values[code]}"
         for (name, values), code in zip(named.items(), row, strict=True)))
        for sample, row in zip(source.samples, codes, strict=True)
    ]  # fmt: skip
    return "\n".join(aligned(rows)) + "\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_an_example_is_read_as_the_document_says(example, tmp_path):
    folder = made(example, tmp_path)
    assert example.shown, "an example shows what comes of it"
    if "error" in example.shown:
        with pytest.raises(DataError) as error:
            open_source(folder)
        assert f"{error.value}\n" == example.shown["error"]
        return
    source = open_source(folder)
    (tmp_path / "config.yaml").write_text(example.config, encoding="utf-8")
    config = load_config(file=tmp_path / "config.yaml")
    found = {"samples": shown_samples(source)}
    if config.model.metadata:
        found["encoded"] = shown_codes(source, config)
    if "duplicates" in example.shown:
        data = open_data(DataConfig(dir=str(folder)), 32)
        found["duplicates"] = "\n".join(duplicate_lines(data.samples, data.duplicates, {})) + "\n"
    for kind, text in example.shown.items():
        assert found[kind] == text


def test_the_example_without_metadata_is_a_model_without_them(tmp_path):
    (example,) = [example for example in EXAMPLES if example.name == "minimal"]
    (tmp_path / "config.yaml").write_text(example.config)
    assert vocabularies(load_config(file=tmp_path / "config.yaml").model) == ()


def test_every_key_has_a_line_and_an_example():
    rows = re.findall(r"^\| (`[^|]*) \| [^|]+ \|$", TEXT, re.MULTILINE)
    named = {key for row in rows for key in re.findall(r"`([\w]+)`", row)}
    keys = {spec.name for spec in dataclasses.fields(ManifestLayout)}
    assert keys <= named, keys - named
    manifests = [yaml.safe_load(e.texts["manifest.yaml"]) for e in EXAMPLES if "manifest.yaml" in e.texts]
    assert keys == {key for manifest in manifests for key in manifest}
    inner = {key for manifest in manifests for entry in manifest.get("metadata", {}).values() for key in entry}
    assert inner == {spec.name for spec in dataclasses.fields(MetadataSource)}


def test_words_for_nothing_and_vocabularies_are_all_there():
    flowing = " ".join(TEXT.split())
    listed = re.search(r"empty or one of (.*?)\. All faults", flowing).group(1)
    assert set(re.findall(r"`([^`]+)`", listed)) == MISSING - {""}
    assert f"Vocabulary of `sex`: {', '.join(VOCABULARIES['sex'][1:])}." in flowing
    assert f"Of `localization`: {', '.join(VOCABULARIES['localization'][1:])}." in flowing
