"""What columns and values of hospitals' tables are usually called, in English and German: for drafts only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from fedskew.data.finder import folded

_PLACES_DE = ("standort", "einrichtung", "zentrum", "praxis")
# manifest key → words that a column's name may hold, the likeliest first
COLUMNS: dict[str, tuple[str, ...]] = {
    "label": ("dx", "diagnosis", "diagnose", "label", "class", "klasse", "histology", "histologie", "befund", "target"),
    "lesion": ("lesion", "läsion", "laesion"),
    "patient": ("patient", "patientid", "patnr", "pat", "pid", "subject", "person"),
    "age": ("age", "alter", "lebensalter"),
    "sex": ("sex", "gender", "geschlecht", "geschl"),
    "localization": (
        "localization",
        "localisation",
        "location",
        "lokalisation",
        "körperstelle",
        "anatom",
        "body",
        "region",
    ),
    "site": (
        "site",
        "institution",
        "hospital",
        "clinic",
        "klinik",
        "centre",
        "center",
        "dataset",
        "station",
        *_PLACES_DE,
    ),
}
SEXES = {"female": ("f", "w", "female", "weiblich", "frau", "woman"), "male": ("m", "male", "männlich", "mann", "man")}
PLACES = {
    "acral": ("akral",),
    "abdomen": ("bauch", "abdomen"),
    "back": ("rücken", "ruecken", "dorsal", "posterior torso"),
    "chest": ("brust", "thorax", "anterior torso"),
    "ear": ("ohr", "ear"),
    "face": ("gesicht", "nase", "wange", "stirn", "lippe", "nose", "cheek", "forehead"),
    "foot": ("fuß", "fuss"),
    "hand": ("finger",),
    "lower extremity": ("bein", "unterschenkel", "oberschenkel", "leg", "thigh", "calf", "lower leg"),
    "neck": ("hals", "nacken"),
    "scalp": ("kopfhaut", "capillitium"),
    "trunk": ("rumpf", "stamm", "torso"),
    "upper extremity": ("arm", "unterarm", "oberarm", "schulter", "shoulder", "forearm"),
}
DIAGNOSES = {  # HAM10000's classes
    "akiec": ("aktinische keratose", "actinic keratosis", "bowen", "morbus bowen", "ak", "akiec"),
    "bcc": ("basaliom", "basalzellkarzinom", "basal cell carcinoma", "bcc"),
    "bkl": ("seborrhoische keratose", "seborrheic keratosis", "benign keratosis", "lentigo", "bkl", "sk"),
    "df": ("dermatofibrom", "dermatofibroma", "df"),
    "mel": ("melanom", "melanoma", "malignes melanom", "malignant melanoma", "mm", "mel"),
    "nv": ("naevus", "nävus", "nevus", "naevi", "melanocytic nevus", "nv"),
    "vasc": ("angiom", "hämangiom", "haemangiom", "hemangioma", "vascular lesion", "vaskuläre läsion", "vasc"),
}


# a column's word for what names a case and so tells a model nothing; also at the end of a word, as in Fallnummer
_IDENTIFIERS = ("id", "ids", "uid", "uuid", "guid", "nr", "no", "key", "barcode", "accession")
_NUMBERS = ("nummer", "number", "schlüssel", "identifier")


def names_cases(column: str) -> bool:
    """Whether a column's name says that it holds names or numbers of cases."""
    return any(word in _IDENTIFIERS or word.endswith(_NUMBERS) for word in words(column))


def words(name: str) -> list[str]:
    """The words of a column's name: `Diagnose (klinisch)` has two, as has `age_years`."""
    return [folded(word) for word in re.findall(r"[^\W\d_]+", name)]


def columns_by_name(columns: Iterable[str]) -> dict[str, str]:
    """Manifest key → column, for the keys of `COLUMNS` that a column's name speaks of."""
    left, found = list(columns), dict[str, str]()
    for key, names in COLUMNS.items():
        for name in names:
            matches = [column for column in left if any(_speaks_of(word, name) for word in words(column))]
            match = min(matches, key=lambda column: len(words(column)), default=None)  # dx before dx_type
            if match is not None:
                found[key] = match
                left.remove(match)
                break
    return found


def _speaks_of(word: str, name: str) -> bool:
    return word == folded(name) or (len(name) >= 5 and word.startswith(folded(name)))  # patientennummer


def meaning(value: str, known: Mapping[str, tuple[str, ...]]) -> str | None:
    """The key of `known` under which a value stands; None if there is none."""
    return next((key for key, values in known.items() if folded(value) in (key, *map(folded, values))), None)


def identifier(column: str) -> str:
    """A plain name for a column: `Größe (mm)` is `grosse_mm`."""
    ascii_text = unicodedata.normalize("NFKD", column.replace("ß", "ss")).encode("ascii", "ignore").decode()
    return "_".join(re.findall(r"[a-z0-9]+", ascii_text.lower())) or "column"
