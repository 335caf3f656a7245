"""The families of encoders there are: one class each, see `model.groups.Spec`."""

from fedskew.model.families.swin import SwinSpec
from fedskew.model.families.vit import ViTSpec
from fedskew.model.groups import Spec

_SPECS: tuple[type[Spec], ...] = (SwinSpec, ViTSpec)
SPECS = {spec.family: spec for spec in _SPECS}
