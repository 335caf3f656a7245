"""Methods of training together: one file each, and one line here; plugins add theirs with `register_method`."""

from collections.abc import Callable

from fedskew.config import registry
from fedskew.config.schema import Config
from fedskew.methods.average import AVERAGE, Average
from fedskew.methods.base import Method
from fedskew.methods.skewness import SKEWNESS, SkewnessPruning

AUTO = "auto"
MethodFactory = Callable[[Config], Method]
METHODS: registry.Registry[MethodFactory] = registry.METHODS  # see `config.registry` for whose state this is
METHODS.add(AVERAGE, Average)
METHODS.add(SKEWNESS, SkewnessPruning)
register_method = METHODS.register  # decorator: `federation.method=NAME` is this class, or function of a configuration


def make_method(config: Config) -> Method:
    """The method that a configuration asks for.

    Raises:
        ConfigError: unknown name.
    """
    name = config.federation.method
    if name == AUTO:
        name = AVERAGE if config.prune.criterion == "none" else SKEWNESS
    return METHODS.find(name)(config)
