"""The README's commands: those that CI runs are found and left out as marked, and none names what there is not."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from fedskew.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|`|\$ |(?<=\s))fedskew ((?:[a-z][a-z-]*)(?: [^`\n|;]*)?)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def _module():
    spec = importlib.util.spec_from_file_location("run_readme", ROOT / "scripts" / "run_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_readme = _module()
TEXT = """
```bash
git clone <this repository> fedskew && cd fedskew
make install   # minutes
fedskew run --preset demo \\
  --nodes 4
# a comment
```
```text
fedskew not-a-command
```
<!-- not in CI: needs a hospital -->
```bash
fedskew site
```
```bash
fedskew evaluate runs/x --data-dir HAM10000 --set 'a=#b'
```
"""


def test_commands_are_the_lines_of_bash_blocks_and_reasons_stay_with_their_block():
    assert run_readme.commands(TEXT) == [
        ("git clone <this repository> fedskew && cd fedskew", ""),
        ("make install", ""),
        ("fedskew run --preset demo    --nodes 4", ""),
        ("fedskew site", "needs a hospital"),
        ("fedskew evaluate runs/x --data-dir HAM10000 --set 'a=#b'", ""),
    ]


def test_the_script_runs_them_in_order_in_one_shell_and_stops_at_the_first_that_fails(tmp_path):
    found = [("mkdir here && cd here", ""), ("false", "must not run"), ("pwd", ""), ("false", ""), ("touch never", "")]
    done = subprocess.run(["bash", "-c", run_readme.script(found)], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 1
    assert f"{tmp_path}/here\n" in done.stdout
    assert "- left out (must not run): false" in done.stdout
    assert not list(tmp_path.rglob("never"))


def test_the_clone_is_this_checkout_and_data_are_made_once_before_they_are_used():
    script = run_readme.script([*run_readme.commands(TEXT), ("fedskew plan x --data-dir HAM10000", "")])
    assert "\ngit clone" not in script
    assert script.count("generate(Path('HAM10000')") == 1
    assert script.index("generate(") < script.index("\nfedskew evaluate")


def test_the_readme_is_not_run_where_it_would_delete_somebodys_runs():
    assert set(run_readme.LEFT_BEHIND) == {"HAM10000", "runs", "runs.png", "my-images", "my-model"}
    listed = subprocess.run([sys.executable, str(ROOT / "scripts" / "run_readme.py"), "--list"], capture_output=True,
                            text=True, check=True)  # fmt: skip
    assert "fedskew run --preset demo\n" in listed.stdout


def _known(group: click.Group, words: list[str]) -> click.Command:
    command: click.Command = group
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    return command


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = {found[1].strip() for found in COMMAND.finditer(text) if not found[1].startswith(("home", "is", "as"))}
    for line in commands:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose with an apostrophe
            words = line.split()
        if words[0] not in typer.main.get_command(app).commands and "`" not in line:
            assert f"`fedskew {words[0]}" not in text, f"{page}: there is no command fedskew {words[0]}"
            continue  # a sentence about fedskew
        command = _known(typer.main.get_command(app), words)
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        if command.context_settings.get("ignore_unknown_options"):
            continue
        for word in words:
            name = word.partition("=")[0].rstrip(".,:)")
            assert not name.startswith("--") or name in {*options, "--help"}, f"{page}: {line}: no option {name}"


def test_the_readme_names_enough_commands_for_this_test_to_mean_something():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {found[1].split()[0] for found in COMMAND.finditer(text)}
    assert {"run", "simulate", "compare", "plot", "evaluate", "plan", "focus", "options", "stop", "doctor"} <= names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    targets = [target for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (folder / target).exists()] == []
