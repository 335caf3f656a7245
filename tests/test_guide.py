"""The deployment guide's commands: each block has a machine, and what they name is what the units and files say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fedskew.ops.doctor import NODE_KEYS
from fedskew.site.policy_file import load_policy

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
UNITS = ROOT / "docker" / "systemd"
FILE = re.compile(
    r"sudo tee (?P<path>\S+) > /dev/null <<(?P<quote>'?)END'?\n(?P<text>.*?)^END$", re.DOTALL | re.MULTILINE
)


@pytest.fixture
def walk_guide(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import walk_guide  # noqa: PLC0415 - a script, found where it lies

    yield walk_guide
    for name in ("walk_guide", "machines", "run_readme", "install"):
        sys.modules.pop(name, None)


def _written(path: str) -> list[str]:
    """What the guide's commands write to a file, in order."""
    return [found["text"] for found in FILE.finditer(GUIDE) if found["path"] == path]


def _environment(unit: str) -> dict[str, str]:
    text = (UNITS / unit).read_text(encoding="utf-8")
    return dict(
        word.split("=", 1) for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE) for word in line.split()
    )


def test_every_block_of_commands_has_a_machine_and_all_places_are_used(walk_guide):
    found = walk_guide.blocks(GUIDE)
    assert all(block.place for block in found), [block.code for block in found if not block.place]
    assert {block.place for block in walk_guide.steps(GUIDE)} == set(walk_guide.PLACES)
    assert found[0].place == "every machine", "the machines are copies of the one that does this"
    assert [block.reason for block in found if block.reason] == ["thirty rounds of Swin-T, days without a GPU"]


def test_a_block_for_no_machine_is_told(walk_guide):
    with pytest.raises(walk_guide.WalkError, match="a block is for moon"):
        walk_guide.steps("```bash moon\ntrue\n```\n")


def test_what_the_walk_puts_in_and_what_hands_do_has_its_place_in_the_guide(walk_guide):
    for one in walk_guide.SUBSTITUTIONS:
        assert one.text in GUIDE, f"nothing to substitute: {one.text}"
    assert walk_guide.BUILD in GUIDE
    steps = walk_guide.steps(GUIDE)
    assert sum(len(walk_guide.hands(block)) for block in steps) == len(walk_guide.HANDS)


def test_site_settings_mean_the_same_to_systemd_and_to_the_shell_that_starts_the_doctor(tmp_path):
    (text,) = _written("/etc/fedskew/site.env")
    (tmp_path / "site.env").write_text(text)
    shell = subprocess.run(["sh", "-c", '. ./site.env && printf "%s\\n" "$SUPERLINK" "$NODE_CONFIG"'], cwd=tmp_path,
                           capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
    # systemd: a value in double quotes ends with the quote, without them it would be taken as it is
    systemd = [line.partition("=")[2].removeprefix('"').removesuffix('"') for line in text.splitlines()]
    assert shell == systemd
    config = parse_config_args([shell[1]])
    assert set(config) <= set(NODE_KEYS)
    assert config["audit-log"] == "/var/lib/fedskew/audit.jsonl"
    assert GUIDE.count('. /etc/fedskew/site.env && fedskew doctor site --superlink "$SUPERLINK"') == 2


def test_the_sites_policy_is_one(tmp_path):
    (text,) = _written("/etc/fedskew/policy.yaml")
    (tmp_path / "policy.yaml").write_text(text.replace("$(as-fedskew fedskew bundle-hash)", "ab" * 32))
    policy = load_policy(tmp_path / "policy.yaml")
    assert policy.app_hashes == {"ab" * 32}
    assert policy.allowed_runs is None, "an id that is none would refuse every run"


def test_people_and_services_have_the_same_environment():
    """as-fedskew is how a person uses the SuperLink's Flower home, and reads what the services write."""
    words = shlex.split((UNITS / "as-fedskew").read_text(encoding="utf-8").replace("\\\n", " ").split("env ", 1)[1])
    given = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("--"))
    assert given.pop("HOME") == "/var/lib/fedskew"
    run = _environment("fedskew-run.service")
    assert given == run
    superlink, site = _environment("fedskew-superlink.service"), _environment("fedskew-site.service")
    assert {key: superlink[key] for key in given} == given
    assert site == {key: given[key] for key in site}, "a site has no need of FLWR_HOME: fedskew site makes a fresh one"


def test_nginx_is_left_with_no_path_of_the_containers(tmp_path):
    (command,) = re.findall(r"^sed -e .*?nginx\.conf(?= \|)", GUIDE, re.DOTALL | re.MULTILINE)
    made = subprocess.run(["bash", "-c", command.replace("/opt/fedskew", str(ROOT))], capture_output=True, text=True,
                          check=True).stdout  # fmt: skip
    directives = re.sub(r"#.*", "", made)
    assert not re.search(r"superlink:8000|/pki/|/tmp/|/dev/stdout", directives)
    log = re.search(r"access_log (\S+) ", directives)[1]
    assert (ROOT / "docker" / "logrotate.conf").read_text().splitlines()[1] == f"{log} {{"


def test_files_that_the_guide_installs_are_there():
    for path in re.findall(r"/opt/fedskew/(docker/\S+)|(?<= )(docker/systemd/\S+)(?= /usr)", GUIDE):
        assert (ROOT / (path[0] or path[1])).is_file(), path
