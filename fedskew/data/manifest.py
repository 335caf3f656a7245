"""A hospital's own table, read through a manifest that says which column means what.

```yaml
# manifest.yaml, in the folder of the data
file: lesions.csv
image: path            # path relative to the table, or absolute
label: diagnosis
patient: patient_no
age: age_years
sex: gender
labels: {Melanom: mel, Naevus: nv}
sex_values: {w: female, m: male}
```
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from fedskew.data.archives import Store
from fedskew.data.samples import DataError, Sample
from fedskew.data.tables import Row, read_table

LOOKED_FOR = "a hospital's own table: manifest.yaml"
MANIFEST_NAME = "manifest.yaml"
_VALUE_MAPS = ("labels", "sex_values", "localization_values")
_REQUIRED = ("file", "image", "label")


@dataclass(frozen=True)
class ManifestLayout:
    """How to read a hospital's own table.

    Attributes:
        file: the table, relative to the data set's folder (or inside its archive).
        image: column with the image's path, relative to the table or absolute. It is also the image's id.
        label: column with the diagnosis.
        lesion: column that names the lesion. Images of one lesion are never separated.
        patient: column that names the patient. If given it is used in place of `lesion`: a split by patient is
            stronger, because a patient's lesions share skin, camera and often diagnosis.
        age, sex, localization, site: columns with years, sex, body site, institution.
        labels: diagnosis in the table -> class; every diagnosis must be listed. Empty: diagnoses are classes.
        sex_values, localization_values: value in the table -> value of the vocabulary; others stay as they are
            (lower case), and those that the vocabulary lacks count as unknown.
        separator: of the table; None recognises tab, comma or semicolon.
    """

    file: str
    image: str
    label: str
    lesion: str | None = None
    patient: str | None = None
    age: str | None = None
    sex: str | None = None
    localization: str | None = None
    site: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    sex_values: Mapping[str, str] = field(default_factory=dict)
    localization_values: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None


def load_manifest(path: str | Path) -> ManifestLayout:
    """Read and validate a manifest.

    Raises:
        DataError: the file is absent, not YAML, lacks `file`, `image` or `label`, or holds an unknown key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"manifest {path} cannot be read: {error}") from error
    return parse_manifest(text, str(path))


def parse_manifest(text: str, name: str) -> ManifestLayout:
    """`load_manifest` for a text; `name` is used in messages."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"manifest {name} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"manifest {name} must hold keys and values such as 'file: lesions.csv'")
    valid = [item.name for item in fields(ManifestLayout)]
    for key in content:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
            raise DataError(f"manifest {name}: unknown key {key!r}; {hint}")
    lacking = [key for key in _REQUIRED if content.get(key) is None]
    if lacking:
        raise DataError(f"manifest {name} lacks {', '.join(lacking)}; required are {', '.join(_REQUIRED)}")
    return ManifestLayout(**{key: _value(name, key, value) for key, value in content.items() if value is not None})


def parse(store: Store, layout: ManifestLayout) -> list[Sample]:
    """The samples of the hospital's table; `image` is empty where there is no such file.

    Raises:
        DataError: a column of the manifest is not in the table, or a diagnosis is not among `labels`.
    """
    file = posixpath.normpath(layout.file)
    if store.entry(file) is None:
        raise DataError(f"manifest: table {layout.file} is not in {store.path}; correct its key 'file'")
    table = read_table(store, file, layout.separator)
    columns = [layout.image, layout.label, layout.lesion, layout.patient,
               layout.age, layout.sex, layout.localization, layout.site]  # fmt: skip
    table.need(*(column.lower() for column in columns if column))
    return [_sample(store, layout, row, posixpath.dirname(file)) for row in table.rows]


def _sample(store: Store, layout: ManifestLayout, row: Row, folder: str) -> Sample:
    image_id = row.required(layout.image.lower())
    key = posixpath.normpath(posixpath.join(folder, image_id.replace("\\", "/")))
    label = row.required(layout.label.lower())
    if layout.labels and label not in layout.labels:
        raise DataError(f"{row.place}: diagnosis {label!r} of image {image_id} is not among the manifest's 'labels' "
                        f"({', '.join(layout.labels)}); add it there")  # fmt: skip
    group = row.text(_lower(layout.patient)) or row.text(_lower(layout.lesion))
    return Sample(
        image_id=image_id,
        lesion_id=group or image_id,
        label=layout.labels.get(label, label),
        age=row.age(_lower(layout.age)),
        sex=_mapped(layout.sex_values, row.text(_lower(layout.sex))),
        localization=_mapped(layout.localization_values, row.text(_lower(layout.localization))),
        site=row.text(_lower(layout.site)),
        image=key if store.entry(key) is not None else "",
    )


def _lower(column: str | None) -> str | None:
    return column.lower() if column else None


def _mapped(values: Mapping[str, str], value: str | None) -> str | None:
    return None if value is None else values.get(value, value.lower())


def _value(name: str, key: str, value: Any) -> str | dict[str, str]:
    if key not in _VALUE_MAPS:
        if isinstance(value, str):
            return value
        raise DataError(f"manifest {name}: {key!r} must be text, got {value!r}; put it in quotes")
    if not isinstance(value, dict):
        raise DataError(f"manifest {name}: {key!r} must map values to values, e.g. {{Melanom: mel}}, got {value!r}")
    for old, new in value.items():
        # YAML reads yes, no, on, off as booleans and 01 as a number: the table would never match them
        if isinstance(old, bool) or not isinstance(old, str | int) or not isinstance(new, str):
            raise DataError(f"manifest {name}: {key!r} must map text to text, got {old!r}: {new!r}; use quotes")
    return {str(old): new for old, new in value.items()}
