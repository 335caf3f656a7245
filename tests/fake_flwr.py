"""Plays the command `flwr` as a file of JSON tells it, for tests of what is around it.

    FAKE_FLWR=plan.json python fake_flwr.py run …

The plan: `attempts`, one a call of `flwr run` (the last one for all further calls), each a list of steps
["print", text], ["copy", from, to, [names left out]], ["write", path, text], ["sleep", seconds], ["exit", code]; and
`status`, what `flwr list` answers.
The words of every call of `flwr run` are appended to plan.words.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path


def main() -> None:
    """Play one call."""
    path = Path(os.environ["FAKE_FLWR"])
    plan = json.loads(path.read_text(encoding="utf-8"))
    if sys.argv[1] == "list":
        print(json.dumps({"success": True, "runs": [{"status": plan["status"], "status-details": "boom"}]}))
        return
    with path.with_suffix(".words").open("a", encoding="utf-8") as words_of_calls:
        print(json.dumps(sys.argv[1:]), file=words_of_calls)
    count = path.with_suffix(".count")
    call = int(count.read_text()) if count.is_file() else 0
    count.write_text(str(call + 1))
    for step, *words in plan["attempts"][min(call, len(plan["attempts"]) - 1)]:
        if step == "print":
            print(words[0], flush=True)
        elif step == "copy":
            shutil.copytree(words[0], words[1], ignore=shutil.ignore_patterns(*words[2]))
        elif step == "write":
            Path(words[0]).write_text(words[1], encoding="utf-8")
        elif step == "sleep":
            time.sleep(words[0])
        elif step == "exit":
            sys.exit(words[0])


if __name__ == "__main__":
    main()
