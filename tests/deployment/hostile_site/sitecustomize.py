"""On a hostile site's PYTHONPATH: the app is the pinned one, and what it answers is changed before it is signed.

Every update is 1e30 throughout, but in the rounds of FEDSKEW_TEST_REVERSED: there the honest update is turned round, at
1.8 times its norm, and said to come from 2²⁸ examples.
"""

import importlib.abc
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

SEALING = "fedskew.site.mod"
EXAMPLES = 2**28


class Corruption(importlib.abc.MetaPathFinder):
    """Changes the module that signs answers when it is imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """See `MetaPathFinder`."""
        if fullname != SEALING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        honest = spec.loader.exec_module

        def execute(module: ModuleType) -> None:
            honest(module)
            corrupt(module)

        spec.loader.exec_module = execute
        return spec


def corrupt(sealing: ModuleType) -> None:
    """Lie, then sign: a registered site may send in its own name whatever it likes."""
    import numpy as np  # noqa: PLC0415
    from flwr.app import Array, ArrayRecord, MetricRecord  # noqa: PLC0415

    reversed_in = set(os.environ["FEDSKEW_TEST_REVERSED"].split())
    seal = sealing.seal

    def lying(reply: Any, task: Any, round_number: int, sign: Any) -> Any:
        if not reply.has_error() and task.metadata.message_type == "train":
            ((name, array),) = reply.content["arrays"].items()
            honest, sent = array.numpy(), next(iter(task.content["arrays"].values())).numpy()
            lie = np.full_like(honest, 1e30)
            if str(round_number) in reversed_in:
                lie = sent - np.float32(1.8) * (honest - sent)
                metrics = dict(reply.content["metrics"].items()) | {"num-examples": EXAMPLES}
                reply.content["metrics"] = MetricRecord(metrics)
            reply.content["arrays"] = ArrayRecord({name: Array(np.ascontiguousarray(lie))})
        return seal(reply, task, round_number, sign)

    sealing.seal = lying


sys.meta_path.insert(0, Corruption())
