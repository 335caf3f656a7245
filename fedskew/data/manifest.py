"""A hospital's own table, read through a manifest that says which column means what (docs/data.md).

```yaml
# manifest.yaml, in the folder of the data
file: lesions.csv
image: path            # file name, or path relative to the table, or absolute
label: diagnosis
patient: patient_no
age: age_years
sex: gender
labels: {Melanom: mel, Naevus: nv, unklar: null}
sex_values: {w: female, m: male}
metadata:
  skin_type: {column: Hauttyp, values: {I: "1", II: "2"}}
  diameter: {column: mm, numbers: true}
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from fedskew.data.samples import METADATA_FIELDS, DataError
from fedskew.text import nearest, read_yaml

LOOKED_FOR = "a hospital's own table: manifest.yaml"
MANIFEST_NAME = "manifest.yaml"
_VALUE_MAPS = ("labels", "sex_values", "localization_values")
_REQUIRED = ("file", "image", "label")
_FOR_FOLDERS = frozenset({"labels"})  # all that a manifest without a table may say

ValueMap = Mapping[str, str | None]


@dataclass(frozen=True)
class MetadataSource:
    """Where a further piece of metadata stands in the table.

    Attributes:
        column: its name in the table.
        values: value in the table -> value of the run's vocabulary, or None for unknown; others stay as they are
            (lower case).
        numbers: whether every value must be a number (or say that it is not known).
    """

    column: str
    values: ValueMap = field(default_factory=dict)
    numbers: bool = False


@dataclass(frozen=True)
class ManifestLayout:
    """How to read a hospital's own table, or its folders by class if `file` is empty.

    Attributes:
        file: the table, relative to the data set's folder (or inside its archive).
        image: column with the image's file name (with or without suffix), its path relative to the table or the data
            set, or its absolute path. It is also the image's id.
        label: column with the diagnosis.
        lesion: column that names the lesion. Images of one lesion are never separated.
        patient: column that names the patient. Images of one patient are never separated: that is stronger, because a
            patient's lesions share skin, camera and often diagnosis. Lesions may be numbered within each patient.
        age, sex, localization, site: columns with years, sex, body site, institution.
        labels: diagnosis in the table -> class, or None to leave such images out; every diagnosis must be listed.
            Empty: diagnoses are classes.
        sex_values, localization_values: value in the table -> value of the vocabulary, or None for unknown; others
            stay as they are (lower case), and those that the vocabulary lacks count as unknown.
        metadata: further columns by the name that the run has for them in `model.metadata`.
        separator: of the table; None recognises tab, comma or semicolon.
        encoding: of the table; None recognises UTF-8, UTF-16 and cp1252.
    """

    file: str = ""
    image: str = ""
    label: str = ""
    lesion: str | None = None
    patient: str | None = None
    age: str | None = None
    sex: str | None = None
    localization: str | None = None
    site: str | None = None
    labels: ValueMap = field(default_factory=dict)
    sex_values: ValueMap = field(default_factory=dict)
    localization_values: ValueMap = field(default_factory=dict)
    metadata: Mapping[str, MetadataSource] = field(default_factory=dict)
    separator: str | None = None
    encoding: str | None = None


def load_manifest(path: str | Path, *, labelled: bool = True) -> ManifestLayout:
    """Read and validate a manifest.

    Args:
        labelled: whether it must name a column with the diagnosis, which nobody needs who wants one.

    Raises:
        DataError: the file is absent, not YAML, lacks `file`, `image` or `label`, or holds an unknown key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"manifest {path} cannot be read: {error}") from error
    return parse_manifest(text, str(path), labelled=labelled)


def parse_manifest(text: str, name: str, *, labelled: bool = True) -> ManifestLayout:
    """`load_manifest` for a text; `name` is used in messages."""
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        raise DataError(f"manifest {name} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"manifest {name} must hold keys and values such as 'file: lesions.csv'")
    _known_keys(f"manifest {name}", content, [item.name for item in fields(ManifestLayout)])
    given = {key: value for key, value in content.items() if value is not None}
    required = [key for key in _REQUIRED if labelled or key != "label"]
    lacking = [key for key in required if key not in given]
    if lacking and (set(given) - _FOR_FOLDERS or not given):
        raise DataError(
            f"manifest {name} lacks {', '.join(lacking)}; required are {', '.join(required)}, "
            "or nothing but labels where images lie in folders by class"
        )
    return ManifestLayout(**{key: _value(name, key, value) for key, value in given.items()})


def _value(name: str, key: str, value: Any) -> Any:
    if key == "metadata":
        return _metadata(name, value)
    return _value_map(name, key, value) if key in _VALUE_MAPS else _text(name, key, value)


def _text(name: str, key: str, value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise DataError(f"manifest {name}: {key!r} must be text, got {value!r}; put it in quotes")


def _value_map(name: str, key: str, value: Any) -> dict[str, str | None]:
    if not isinstance(value, dict):
        raise DataError(f"manifest {name}: {key!r} must map values to values, e.g. {{Melanom: mel}}, got {value!r}")
    for old, new in value.items():
        # YAML reads yes, no, on, off as booleans and 01 as a number: the table would never match them
        if isinstance(old, bool) or not isinstance(old, str | int) or not isinstance(new, str | None):
            raise DataError(f"manifest {name}: {key!r} must map text to text, got {old!r}: {new!r}; use quotes")
    return {str(old): new for old, new in value.items()}


def _metadata(name: str, value: Any) -> dict[str, MetadataSource]:
    if not isinstance(value, dict):
        raise DataError(f"manifest {name}: 'metadata' must map names to columns, e.g. {{diameter: mm}}, got {value!r}")
    found = {}
    for own, content in value.items():
        key = f"metadata.{own}"
        if own in METADATA_FIELDS:
            raise DataError(f"manifest {name}: {own!r} is a key of its own, outside of 'metadata'")
        content = {"column": content} if isinstance(content, str) else content
        if not isinstance(own, str) or not isinstance(content, dict):
            raise DataError(f"manifest {name}: {key!r} must be a column, or {{column: …, values: …}}, got {content!r}")
        _known_keys(f"manifest {name}", content, [item.name for item in fields(MetadataSource)], f"{key}.")
        numbers = content.get("numbers", False)
        if not isinstance(numbers, bool) or (numbers and content.get("values")):
            raise DataError(f"manifest {name}: '{key}.numbers' must be true or false, and true without values")
        values = _value_map(name, f"{key}.values", content.get("values") or {})
        found[own] = MetadataSource(_text(name, f"{key}.column", content.get("column")), values, numbers)
    return found


def _known_keys(where: str, content: Mapping[Any, Any], valid: list[str], prefix: str = "") -> None:
    for key in content:
        if key not in valid:
            near = nearest(str(key), valid, 0.5)
            hint = f"did you mean '{prefix}{near}'?" if near else f"valid keys: {', '.join(valid)}"
            raise DataError(f"{where}: unknown key '{prefix}{key}'; {hint}")
