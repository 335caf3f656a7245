"""Run every command of README.md, or of another page, in this checkout, in order, as a person would in one shell.

    python3 scripts/run_readme.py                     # what CI does on its clone: it also installs, unless that is done
    python3 scripts/run_readme.py docs/tutorial.md    # the same for another page
    python3 scripts/run_readme.py --list              # only print them

Commands are the lines of its ```bash blocks. Some things are not as a reader has them: the clone is this checkout,
`HAM10000` is a folder of generated images in the layout of the real one, Flower's and fedskew's homes are temporary
(`fedskew setup`, a part of `make install`, is repeated in them), Flower's local SuperLink has a free port, and every
run ends after two rounds. A block below a line `<!-- not in CI: the reason -->` is told and left out. Needs the
standard library alone: nothing need be installed when it begins.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"(?:<!-- not in CI: (?P<reason>[^>]*?) -->\n)?```bash(?: (?P<place>[^\n]*))?\n(?P<code>.*?)```", re.DOTALL
)
DATA, IMAGES = "HAM10000", 300
LEFT_BEHIND = (DATA, "runs", "runs.png", "my-images", "my-model")  # by the commands of the pages
ACTIVATION = "source .venv/bin/activate"
ROUNDS = 2
# A run of Flower's own command has to be looked after: its exit code is 0 even if the run failed. The README says when
# it has to be repeated.
FUNCTIONS = f"""
fedskew() {{
  if [ "$1" = run ]; then command fedskew "$@" --set federation.rounds={ROUNDS}; else command fedskew "$@"; fi
}}
flwr() {{
  local try
  for try in 1 2 3; do
    if command flwr "$@" 2>&1 | tee "$TOLD"; then grep -q "^| after {ROUNDS} rounds" "$TOLD"; return; fi
    grep -q "Failed to start local SuperLink within\\|node timed out during startup" "$TOLD" || return 1
  done
  return 1
}}
"""
GENERATE = f"""
python - <<'END'
from pathlib import Path
from fedskew.demo.generator import generate
generate(Path({DATA!r}), images={IMAGES}, seed=0)
END
"""


class Block(NamedTuple):
    """A ```bash block; `place`: what else stands behind that word, which readers do not see."""

    code: str
    place: str
    reason: str  # why CI leaves it out, or nothing


def blocks(text: str) -> list[Block]:
    """The blocks of a document in order."""
    return [Block(found["code"], found["place"] or "", found["reason"] or "") for found in BLOCK.finditer(text)]


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a document in order, each with the reason why CI leaves it out, or nothing.

    A line that ends in a backslash goes on in the next; comments and empty lines are no commands.
    """
    found = []
    for block in blocks(text):
        for line in block.code.replace("\\\n", " ").splitlines():
            if command := re.split(r"(?:^|\s)#", line)[0].strip():
                found.append((command, block.reason))
    return found


def script(found: list[tuple[str, str]]) -> str:
    """A bash script that shows and runs them, and stops at the first that fails."""
    lines = ["set -euo pipefail", FUNCTIONS.strip(), "trap 'command fedskew stop || true' EXIT"]
    made = False
    for command, reason in found:
        if reason:
            lines.append(f"echo {shlex.quote(f'- left out ({reason}): {command}')}")
            continue
        if re.match(r"git clone .* && cd \S+$", command):
            lines.append(f"echo {shlex.quote(f'- this checkout is the clone: {command}')}")
            continue
        if DATA in command and not made:
            lines += [f"echo '- {IMAGES} generated images stand for {DATA}'", GENERATE.strip()]
            made = True
        quoted = shlex.quote(f"$ {command}")
        lines += [f"echo {quoted}; SECONDS=0", command, 'echo "- ${SECONDS} s"']
        if command == ACTIVATION:
            lines.append("fedskew setup &> /dev/null")
    return "\n".join(lines) + "\n"


def free_port() -> str:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def main() -> int:
    """Run or list them; the exit code is that of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", default="README.md", help="below the checkout")
    parser.add_argument("--list", action="store_true", help="only print them")
    given = parser.parse_args()
    found = commands((ROOT / given.page).read_text(encoding="utf-8"))
    if given.list:
        print("\n".join(f"{command}   # not in CI: {reason}" if reason else command for command, reason in found))
        return 0
    in_the_way = [name for name in LEFT_BEHIND if (ROOT / name).exists()]
    if in_the_way:
        print(f"{', '.join(in_the_way)} lies in {ROOT} already: run this in a fresh clone", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        environment |= {"FLWR_HOME": f"{home}/flwr", "FEDSKEW_HOME": f"{home}/fedskew", "TOLD": f"{home}/told"}
        environment |= {f"FLWR_LOCAL_{name}_PORT": free_port() for name in ("SUPERLINK_HTTP_API", "CONTROL_API")}
        try:
            done = subprocess.run(["bash", "-c", script(found)], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
        finally:
            for name in LEFT_BEHIND:
                path = ROOT / name
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    print(f"{given.page}: " + ("this command failed" if done.returncode else "every command works"))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
