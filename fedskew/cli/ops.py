"""`fedskew credentials` and `fedskew doctor`. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from fedskew.cli.errors import clear_errors, refuse
from fedskew.cli.vocabulary import ConfigFile, Settings
from fedskew.text import printable_lines

doctor = typer.Typer(
    no_args_is_help=True,
    short_help="Check a data set, or a site's or coordinator's machine.",
    help="Check a data set, or a coordinator's or a site's machine. Exit codes: 0 nothing fails (there may be "
    "warnings), 1 something fails, 2 the command has to be mended.",
)

Roots = Annotated[Path | None, typer.Option("--root-certificates", help="The CA's certificate, ca.crt.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Plain text, for a demo on one machine.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder or archive with the data.")]
Manifest = Annotated[Path | None, typer.Option(help="YAML that maps the columns and labels of an own table.")]
Classes = Annotated[
    str,
    typer.Option(help="The run's classes, separated by commas (default: the configuration's, or HAM10000's seven)."),
]
RunsPreset = Annotated[
    str, typer.Option(metavar="NAME|FILE", help="The run's preset: its classes and metadata.", show_default=False)
]
Images = Annotated[int, typer.Option(min=0, metavar="N", help="Decode no more images than this; 0: all.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON to standard output, for programs.")]


def credentials(
    out: Annotated[Path, typer.Option(help="Folder to write to; what is there is added to.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address of the coordinator; repeatable (default: this machine alone).", show_default=False
        ),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Name of a site; repeatable.")] = None,
    days: Annotated[int, typer.Option(min=1, metavar="N", help="How long the server certificate is valid.")] = 90,
    force: Annotated[
        bool, typer.Option("--force", help="Replace server certificate and site keys that are there.")
    ] = False,
) -> None:
    """Make DEMO credentials: a CA, a certificate, sites' keys.

    The certificate is the coordinator's, for TLS; every site gets a key pair.
    """
    from fedskew.ops.credentials import has_server_certificate, instructions, make_credentials

    place = out.expanduser()
    local = not host and not has_server_certificate(place)
    with clear_errors():
        made = make_credentials(
            place, hosts=["localhost"] if local else host or [], sites=site or [], days=days, force=force
        )
    typer.echo("\n".join(instructions(made)))
    if local:
        typer.echo("\nNo --host was given: the certificate is for this machine alone (localhost). For others:\n"
                   f"  fedskew credentials --out {out} --host NAME-OR-ADDRESS --force")  # fmt: skip


@doctor.command("data", epilog="Example: fedskew doctor data --data-dir ~/clinic --preset ham10000-small")
def doctor_data(
    data_dir: Annotated[Path, typer.Option(help="Folder or archive with the data.", show_default=False)],
    manifest: Manifest = None,
    classes: Classes = "",
    preset: RunsPreset = "",
    config: ConfigFile = "",
    set_: Settings = None,
    images: Images = 0,
    json: AsJson = False,
) -> None:
    """Check a data set: classes, metadata, names, unreadable images and copies, as training would find them."""
    from fedskew.cli.terminal import shown
    from fedskew.ops.doctor import diagnose_data

    found = diagnose_data(_data(data_dir, manifest, _expected(classes, preset, config, set_), images))
    given = f" --manifest {shown(manifest)}" if manifest else ""
    run = f"fedskew run --preset {preset or 'ham10000-small'} --data-dir {shown(data_dir)}{given}"
    run += f" --config {shown(Path(config))}" if config else ""
    _show(found, json, run + "".join(f" --set {shlex.quote(text)}" for text in set_ or ()))


@doctor.command(
    "site",
    epilog="Example: fedskew doctor site --superlink fl.example.org:8443 --root-certificates ca.crt --data-dir DIR",
)
def doctor_site(
    superlink: Annotated[str, typer.Option(help="host:port, as flower-supernode gets it.")] = "",
    root_certificates: Roots = None,
    insecure: Insecure = False,
    node_key: Annotated[Path | None, typer.Option(help="This site's private key.")] = None,
    node_config: Annotated[
        str, typer.Option(help="As flower-supernode gets it: \"data-dir='/data' policy='…'\".")
    ] = "",
    data_dir: DataDir = None,
    manifest: Manifest = None,
    policy: Annotated[Path | None, typer.Option(help="This site's policy file.")] = None,
    audit_log: Annotated[Path | None, typer.Option(help="This site's audit log.")] = None,
    classes: Classes = "",
    preset: RunsPreset = "",
    config: ConfigFile = "",
    set_: Settings = None,
    images: Images = 0,
    json: AsJson = False,
) -> None:
    """Check a hospital's machine: versions, way to the SuperLink, certificate, key, data, policy, audit log."""
    from fedskew.ops.doctor import diagnose_site

    given = {"data-dir": data_dir, "manifest": manifest, "policy": policy, "audit-log": audit_log}
    expected = _expected(classes, preset, config, set_)
    node = _node_config(node_config) | {key: _absolute(path) for key, path in given.items() if path}
    folder, manifest = (Path(str(node[key])) if node.get(key) else None for key in ("data-dir", "manifest"))
    endpoint = _endpoint(superlink, root_certificates, insecure)
    _show(diagnose_site(endpoint, node_key, _data(folder, manifest, expected, images), node), json)


@doctor.command("coordinator", epilog="Example: fedskew doctor coordinator --public fl.example.org:8443")
def doctor_coordinator(
    superlink: Annotated[str, typer.Option(help="The SuperLink as this machine reaches it.")] = "127.0.0.1:8000",
    public: Annotated[str, typer.Option(help="host:port that sites use (the proxy).")] = "",
    root_certificates: Roots = None,
    insecure: Insecure = False,
    server_cert: Annotated[Path | None, typer.Option(help="Certificate of SuperLink or proxy.")] = None,
    server_key: Annotated[Path | None, typer.Option(help="Its key (default: beside it, .key).")] = None,
    host: Annotated[list[str] | None, typer.Option(help="Name or address that sites use; repeatable.")] = None,
    data_dir: DataDir = None,
    manifest: Manifest = None,
    output_dir: Annotated[str, typer.Option(help="Where run folders are made.")] = "",
    classes: Classes = "",
    preset: RunsPreset = "",
    config: ConfigFile = "",
    set_: Settings = None,
    images: Images = 0,
    json: AsJson = False,
) -> None:
    """Check the coordinator's machine: versions, certificate, SuperLink, sites, public address, own data."""
    from fedskew.ops.doctor import Server, diagnose_coordinator

    outside = _endpoint(public, root_certificates, insecure)
    hosts = tuple(host or ([outside.host] if outside else []))
    found = diagnose_coordinator(
        _endpoint(superlink, root_certificates, insecure),
        outside,
        Server(server_cert, server_key, hosts),
        _data(data_dir, manifest, _expected(classes, preset, config, set_), images),
        output_dir,
    )
    _show(found, json)


def _endpoint(address: str, roots: Path | None, insecure: bool) -> Any:
    from fedskew.ops.check_network import parse_address

    with clear_errors():
        return parse_address(address, roots, insecure=insecure) if address else None


def _node_config(text: str) -> dict[str, Any]:
    from fedskew.flower import parse_config_args

    try:
        return dict(parse_config_args([text])) if text else {}
    except (ValueError, SystemExit, typer.Exit) as error:
        refuse(f"--node-config {text!r} cannot be read ({error}); quote texts: data-dir='/data/ham'", error)


def _data(folder: Path | None, manifest: Path | None, expected: Any, images: int) -> Any:
    from fedskew.ops.doctor import Data

    return Data(folder, manifest, expected, images)


def _expected(classes: str, preset: str, config: str, settings: list[str] | None) -> Any:
    """What the run expects of the data, as its configuration says where one is given; `classes` come before it."""
    from fedskew.ops.check_data import Expected

    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    if not (preset or config or settings):
        return Expected(names) if names else Expected()
    with clear_errors():
        from fedskew.cli.vocabulary import use_plugins
        from fedskew.config import load_config
        from fedskew.data.preprocessing import cache_size
        from fedskew.model.catalogue import dense_architecture

        use_plugins()
        found = load_config(preset, file=config, overrides=" ".join(settings or []))
        arch = dense_architecture(found.model)
    return Expected(names or arch.classes, dict(arch.vocabularies), cache_size(arch.image_size), found.data.fit)


def _show(findings: Any, as_json: bool, next_step: str = "") -> None:
    from fedskew.cli.terminal import Terminal
    from fedskew.ops.findings import FAIL, OK, WARN, exit_code, to_json, to_lines

    if as_json:
        typer.echo(to_json(findings))
    else:
        colours = {OK: "green", WARN: "yellow", FAIL: "red", "": None}
        for status, line in to_lines(findings):
            typer.secho(printable_lines(line), fg=colours[status], color=False if os.environ.get("NO_COLOR") else None)
        if next_step and not exit_code(findings):
            Terminal().next_step(next_step)
    raise typer.Exit(exit_code(findings))


def _absolute(path: Path) -> str:
    return str(path.expanduser().absolute())
