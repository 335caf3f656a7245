"""Methods of training together: one file each, and one line here."""

from collections.abc import Callable, Mapping

from fedskew.config.schema import Config
from fedskew.methods.average import AVERAGE, Average
from fedskew.methods.base import Method
from fedskew.methods.skewness import SKEWNESS, SkewnessPruning

METHODS: Mapping[str, Callable[[Config], Method]] = {
    AVERAGE: Average,
    SKEWNESS: SkewnessPruning,
}


def make_method(config: Config) -> Method:
    """The method that a configuration asks for."""
    return METHODS[AVERAGE if config.prune.criterion == "none" else SKEWNESS](config)
