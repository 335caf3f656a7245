"""Why there is no `federation.secure-aggregation`: what Flower's SecAgg+ does, by running it (docs/security.md).

When one of these fails, Flower has changed, and the question is to be asked again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedskew.federation.grids import LocalGrid

NODES, PROXY_LIMIT = 3, 8 * 2**20  # bytes of one request: client_max_body_size of docker/nginx.conf


class Grid(LocalGrid):
    """Each node gets a copy of its own, as over a network; keeps the answers."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__(app, NODES)
        self.answers: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        copies = [Message(copy.deepcopy(message.content), message.metadata.dst_node_id, message.metadata.message_type,
                          group_id=message.metadata.group_id) for message in messages]  # fmt: skip
        return super().push_messages(copies)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(message_ids))
        self.answers += found
        return found


class Proxy:
    """What the workflow reads of a client."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


class LegacyStrategy:
    """The two hooks of the strategies of before the message API, which the workflow calls."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.mean, self.told = grid, np.array([]), {}

    def configure_fit(self, number, parameters, _):
        return [(Proxy(node), FitIns(parameters, {"round": number})) for node in self.grid.get_node_ids()]

    def aggregate_fit(self, number, results, failures):
        (self.mean,) = parameters_to_ndarrays(results[0][1].parameters)
        self.told = {proxy.node_id: answer.num_examples for proxy, answer in results}
        return results[0][1].parameters, {}


def secured(answer) -> ClientApp:
    """A ClientApp of the message API whose training goes through Flower's mod."""
    app = ClientApp()

    @app.train(mods=[secaggplus_mod])
    def train(message: Message, context: Context) -> Message:
        return answer(message, context)

    return app


def legacy_answer(message: Message, context: Context) -> Message:
    """Node i adds i to every weight, and has 100 i examples."""
    weights = parameters_to_ndarrays(compat.recorddict_to_fitins(message.content, True).parameters)[0]
    made = ndarrays_to_parameters([(weights + context.node_id).astype(np.float32)])
    result = FitRes(Status(Code.OK, ""), made, 100 * context.node_id, {})
    return Message(compat.fitres_to_recorddict(result, False), reply_to=message)


def message_answer(message: Message, context: Context) -> Message:
    """An answer as the message API wants it, and as `messages.pack_reply` makes it."""
    arrays = next(iter(message.content.array_records.values()))
    metrics = MetricRecord({"num-examples": 100})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def one_round(grid: Grid, strategy: LegacyStrategy, number: int, weights: np.ndarray) -> None:
    """Flower's workflow for one round, as `DefaultWorkflow` calls it."""
    context = LegacyContext(
        Context(1, 0, {}, RecordDict(), {}), strategy=strategy, client_manager=SimpleClientManager()
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: number})
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([weights]), True
    )
    SecAggPlusWorkflow(1.0, 2 / 3, max_weight=1000.0)(grid, context)


def test_it_averages_models_that_shrink_if_everything_speaks_the_legacy_records():
    grid = Grid(secured(legacy_answer))
    strategy = LegacyStrategy(grid)
    for number, size in enumerate((1000, 400), start=1):
        weights = np.linspace(-1, 1, size, dtype=np.float32)
        one_round(grid, strategy, number, weights)
        added = (1 * 100 + 2 * 200 + 3 * 300) / 600
        np.testing.assert_allclose(strategy.mean, weights + added, atol=1e-4)
    assert strategy.told == {1: 100, 2: 200, 3: 300}, "the numbers of examples travel beside the mask, in clear"


def test_it_takes_neither_the_context_nor_the_answers_of_the_message_api():
    with pytest.raises(TypeError, match="Expect a LegacyContext"):
        SecAggPlusWorkflow(1.0, 2 / 3)(Grid(secured(legacy_answer)), Context(1, 0, {}, RecordDict(), {}))
    grid = Grid(secured(message_answer))
    with pytest.raises(KeyError, match=r"fitres\.parameters"):
        one_round(grid, LegacyStrategy(grid), 1, np.zeros(10, np.float32))


def test_a_mask_has_32_bits_of_seed():
    """The words of the key are folded into one by exclusive or: two keys of 256 bits, one mask."""
    key = bytes(range(32))
    other = key[4:] + key[:4]
    one, same = (pseudo_rand_gen(seed, 2**32, [(1000,)])[0] for seed in (key, other))
    assert key != other
    np.testing.assert_array_equal(one, same)
    folded = np.bitwise_xor.reduce(np.frombuffer(key, "<u4"))
    generator = np.random.RandomState(int(folded))
    np.testing.assert_array_equal(one, generator.randint(0, 2**32 - 1, 1000, dtype=np.int64))


def test_a_task_of_another_name_is_answered_without_a_mask():
    """`train.default` reaches the same function, and the mod only looks at `train`."""
    grid = Grid(secured(legacy_answer))
    content = compat.fitins_to_recorddict(FitIns(ndarrays_to_parameters([np.zeros(3, np.float32)]), {}), True)
    (answer,) = grid.send_and_receive([Message(content, 2, "train.default", group_id="1")])
    (weights,) = parameters_to_ndarrays(compat.recorddict_to_fitres(answer.content, True).parameters)
    np.testing.assert_array_equal(weights, [2, 2, 2])


def test_a_masked_model_is_one_object_of_twice_the_size():
    """Arrays are cut into pieces, settings are not, and the masked weights travel as a setting."""
    size = 2 * PROXY_LIMIT // 8
    grid = Grid(secured(legacy_answer))
    one_round(grid, LegacyStrategy(grid), 1, np.zeros(size, np.float32))
    largest = max(len(part.deflate()) for answer in grid.answers for part in _parts(answer.content))
    assert largest > 8 * size > PROXY_LIMIT
    plain = RecordDict({"arrays": ArrayRecord([np.zeros(size, np.float32)])})
    assert max(len(part.deflate()) for part in _parts(plain)) < FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + 2**10 < PROXY_LIMIT


def _parts(content: RecordDict) -> list:
    return list(get_all_nested_objects(content).values())
