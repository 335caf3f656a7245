"""What is used of Flower beyond `flwr.app`, `flwr.clientapp` and `flwr.serverapp`: its private modules, in one place.

Any release may move or change these. So this file alone knows where they are, a name is looked up when it is first
imported from here (a command that needs none starts without them), and one that is gone is one clear error.
`tests/test_flower.py` holds every name against the installed release, and every use against the shape that it relies
on: how a newer release is tried is told in CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any

from fedskew.errors import FedskewError

# name → (module, attribute; empty for the module itself, whose contents are replaced for the time of a run)
PLACES: Mapping[str, tuple[str, str]] = {
    # what messages, runs and nodes are
    "ErrorCode": ("flwr.common.constant", "ErrorCode"),
    "NodeInfo": ("flwr.proto.node_pb2", "NodeInfo"),
    "Run": ("flwr.supercore.run", "Run"),
    "SType": ("flwr.common.constant", "SType"),
    "SUPERLINK_NODE_ID": ("flwr.common.constant", "SUPERLINK_NODE_ID"),
    "TaskIdentity": ("flwr.supercore.task_identity", "TaskIdentity"),
    # configuration and log
    "init_flwr_config": ("flwr.cli.flower_config", "init_flwr_config"),
    "LOCAL_SUPERLINK_HTTP_API_PORT": ("flwr.cli.constant", "LOCAL_SUPERLINK_HTTP_API_PORT"),
    "parse_config_args": ("flwr.common.config", "parse_config_args"),
    "read_flower_config": ("flwr.cli.flower_config", "read_flower_config"),
    "update_console_handler": ("flwr.common.logger", "update_console_handler"),
    # bundles
    "build_fab_from_disk": ("flwr.cli.build", "build_fab_from_disk"),
    "create_message_to_sign": ("flwr.supercore.primitives.asymmetric_ed25519", "create_message_to_sign"),
    "Fab": ("flwr.supercore.fab", "Fab"),
    "FAB_MAX_SIZE": ("flwr.common.constant", "FAB_MAX_SIZE"),
    "get_fab_config": ("flwr.common.config", "get_fab_config"),
    "get_metadata_from_config": ("flwr.common.config", "get_metadata_from_config"),
    # keys and privacy
    "add_gaussian_noise_inplace": ("flwr.supercore.differential_privacy", "add_gaussian_noise_inplace"),
    "bytes_to_public_key": ("flwr.supercore.primitives.asymmetric", "bytes_to_public_key"),
    "get_norm": ("flwr.supercore.differential_privacy", "get_norm"),
    "public_key_to_bytes": ("flwr.supercore.primitives.asymmetric", "public_key_to_bytes"),
    "sign_message": ("flwr.supercore.primitives.asymmetric", "sign_message"),
    "verify_signature": ("flwr.supercore.primitives.asymmetric", "verify_signature"),
    # the doctor's questions to a SuperLink
    "ActivateNodeRequest": ("flwr.proto.fleet_pb2", "ActivateNodeRequest"),
    "ControlHttpClient": ("flwr.supercore.control", "ControlHttpClient"),
    "DeactivateNodeRequest": ("flwr.proto.fleet_pb2", "DeactivateNodeRequest"),
    "FleetHttpClient": ("flwr.supernode.fleet_http_client", "FleetHttpClient"),
    "HEARTBEAT_MIN_INTERVAL": ("flwr.common.constant", "HEARTBEAT_MIN_INTERVAL"),
    "ListNodesRequest": ("flwr.proto.control_pb2", "ListNodesRequest"),
    "NodeAuthHttpInterceptor": ("flwr.supernode.node_auth_http_interceptor", "NodeAuthHttpInterceptor"),
    # a SuperNode that is watched from inside (`site.guard`, `site.contact`)
    "add_exit_handler": ("flwr.supercore.exit", "add_exit_handler"),
    "ExitCode": ("flwr.supercore.exit", "ExitCode"),
    "fleet_connection": ("flwr.supernode.fleet_http_connection", ""),
    "flower_supernode": ("flwr.supernode.cli.flower_supernode", "flower_supernode"),
    "flwr_exit": ("flwr.supercore.exit", "flwr_exit"),
    "FORCE_EXIT_TIMEOUT_SECONDS": ("flwr.supercore.constant", "FORCE_EXIT_TIMEOUT_SECONDS"),
    "HEARTBEAT_DEFAULT_INTERVAL": ("flwr.common.constant", "HEARTBEAT_DEFAULT_INTERVAL"),
    "HEARTBEAT_PATIENCE": ("flwr.common.constant", "HEARTBEAT_PATIENCE"),
    "supernode_api": ("flwr.supernode.main", ""),
    "supernode_internal": ("flwr.supernode.start_client_internal", ""),
}


class FlowerError(FedskewError, RuntimeError):
    """A release of Flower that lacks what fedskew uses of it."""


def __getattr__(name: str) -> Any:
    """A name of `PLACES`.

    Raises:
        FlowerError: the installed release does not have it.
        AttributeError: it is none of them.
    """
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = PLACES[name]
    try:
        found = import_module(module)
        return getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError):
        raise lacking(f"{module}.{attribute}" if attribute else module) from None


def lacking(what: str) -> FlowerError:
    """The error for something that the installed release does not have."""
    return FlowerError(
        f"flwr {version('flwr')} has no {what}, which fedskew needs: install a release that fedskew is tested with "
        "(pyproject.toml names them)"
    )
