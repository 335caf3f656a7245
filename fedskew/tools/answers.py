"""What a model says of many pictures, one after the other: an error of one does not end the others. Knows no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedskew.errors import FedskewError
from fedskew.tools.cases import Case
from fedskew.tools.metadata import Metadata
from fedskew.tools.predict import Prediction, Predictor


@dataclass(frozen=True)
class Answer:
    """What became of one picture: a prediction, or why there is none."""

    image: str
    prediction: Prediction | None
    error: str = ""


def answers(model: Predictor, cases: Iterable[Case], given: Mapping[str, Metadata]) -> Iterator[Answer]:
    """An answer to every case, in order.

    Args:
        given: metadata of all of them, as `metadata.named` gives them; what a case's own table says comes before.
    """
    for case in cases:
        try:
            picture = model.decoded(case.read())
            yield Answer(case.name, model.predict_decoded(picture, {**given, **case.metadata}))
        except FedskewError as error:
            yield Answer(case.name, None, str(error))


def to_data(found: Sequence[Answer]) -> list[dict[str, Any]]:
    """Plain values for JSON, one mapping an image."""
    return [
        {"image": answer.image, "error": answer.error}
        if answer.prediction is None
        else {
            "image": answer.image,
            "decision": answer.prediction.decision,
            "probabilities": dict(answer.prediction.probabilities),
            "unknown": list(answer.prediction.unknown),
            "notes": list(answer.prediction.notes),
        }
        for answer in found
    ]


def to_csv(found: Sequence[Answer], classes: Sequence[str]) -> str:
    """A table with one row an image; the columns `p_CLASS` are probabilities."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "decision", *(f"p_{name}" for name in classes), "unknown", "notes", "error"])
    for answer in found:
        said = answer.prediction
        if said is None:
            table.writerow([answer.image, "", *("" for _ in classes), "", "", answer.error])
        else:
            numbers = [f"{said.probabilities[name]:.6f}" for name in classes]
            more = [" ".join(said.unknown), "; ".join(said.notes), ""]
            table.writerow([answer.image, said.decision, *numbers, *more])
    return out.getvalue()


def to_text(found: Sequence[Answer], classes: Sequence[str]) -> str:
    """A table for people: percent, the decision first, notes below their image."""
    said = [answer for answer in found if answer.prediction]
    name = max((len(answer.image) for answer in said), default=0)
    word, wide = max(map(len, (*classes, "decision"))), [max(6, len(label)) for label in classes]
    heads = " ".join(f"{label:>{width}}" for label, width in zip(classes, wide, strict=True))
    lines = [f"{'image':{name}}  {'decision':{word}}  {heads}"]
    for answer in said:
        assert answer.prediction is not None
        shares = zip(answer.prediction.probabilities.values(), wide, strict=True)
        numbers = " ".join(f"{share:>{width}.1%}" for share, width in shares)
        lines.append(f"{answer.image:{name}}  {answer.prediction.decision:{word}}  {numbers}")
        lines += [f"  note: {note}" for note in answer.prediction.notes]
    return "\n".join(lines)
