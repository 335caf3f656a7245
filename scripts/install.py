"""What `make install` does: a virtual environment with fedskew in it, all of it or nothing.

    python3 scripts/install.py .venv --torch auto
    python3 scripts/install.py .venv --torch "torch==2.8.0 torchvision==0.23.0"
    python3 scripts/install.py .venv --locked         what the locks pin, each file held against its hash

Runs before anything is installed, so it needs the standard library alone, and its syntax is old enough for the Python
that it refuses.
"""

import argparse
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

OLDEST = (3, 11)
EXACT = "TORCH='torch==2.8.0 torchvision==0.23.0'"
MARKER = ".installed"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STEPS, PROBE_SECONDS = 4, 15
BUILDS = ("auto", "cpu", "cuda")
CHOICE_SECONDS = 10  # before gigabytes are fetched that nobody asked for
LOCKS = Path("locks")  # below the checkout, where make runs this
HASHED = ("--no-deps", "--only-binary", ":all:", "--require-hashes")


class InstallError(Exception):
    """An installation that cannot be finished; the message says what to do."""


def main() -> int:
    """Install; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--torch", default="auto", help="auto, cpu, cuda, or what pip is to install")
    parser.add_argument("--torch-index", default=CPU_INDEX)
    parser.add_argument("--extras", default="dev")
    parser.add_argument("--locked", action="store_true", help="what locks/ pins and no more: no simulations, no tests")
    given = parser.parse_args()
    if sys.version_info < OLDEST:
        print(old_python(), file=sys.stderr)
        return 2
    if given.torch not in BUILDS and not given.torch.startswith("torch"):
        print(unknown_build(given.torch), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is taken back
    started, fresh = time.monotonic(), not given.venv.exists()
    (given.venv / MARKER).unlink(missing_ok=True)
    try:
        install(given.venv, given.torch, given.torch_index, given.extras, given.locked)
    except BaseException as error:  # also Ctrl-C
        take_back(given.venv, fresh)
        if isinstance(error, KeyboardInterrupt):
            return 130
        if not isinstance(error, InstallError):
            raise
        print(f"make install: {error}", file=sys.stderr)
        return 1
    (given.venv / MARKER).touch()
    print(f"installed in {given.venv} in {time.monotonic() - started:.0f} s; activate it in every new shell:")
    print(f"  source {given.venv}/bin/activate")
    return 0


def old_python() -> str:
    """One line for a Python that is too old, with a newer one if there is one."""
    have, need = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST))
    newer = next(filter(is_new_enough, ("python3.13", "python3.12", "python3.11")), None)
    remedy = f"make install PYTHON={newer}" if newer else f"install Python {need} or newer, then make install PYTHON=…"
    return f"make install: {sys.executable} is Python {have}, fedskew needs {need} or newer: {remedy}"


def unknown_build(torch: str) -> str:
    """One line for a build that is none."""
    return f"make install: TORCH={torch} is none of {', '.join(BUILDS)}, nor what pip takes, like {EXACT}"


def install(venv: Path, torch: str, index: str, extras: str, locked: bool) -> None:
    """All steps. Raises `InstallError`."""
    python = venv / "bin" / "python"
    say(1, f"a virtual environment in {venv}, Python {sys.version.split()[0]}")
    if not is_usable(python):
        run([sys.executable, "-m", "venv", "--clear", str(venv)], "the environment cannot be made")
    say(2, "torch")
    install_torch(python, torch, index, locked)
    say(3, "fedskew and what it needs (" + ("as locked" if locked else extras) + ")")
    if locked:
        for name in ("requirements", "build"):
            pip(python, *HASHED, "--requirement", str(LOCKS / (name + ".txt")))
        pip(python, "--no-deps", "--no-build-isolation", "--editable", ".")
    else:
        pip(python, "--editable", f".[{extras}]")
    say(4, "Flower's connection for simulations")
    run([str(venv / "bin" / "fedskew"), "setup"], "fedskew was installed and does not start")


def install_torch(python: Path, build: str, index: str, locked: bool) -> None:
    """The build that was asked for; `auto` takes that for the CPU where there is no NVIDIA GPU.

    Locked: the usual build by its hashes, and the CPU build by the same version, for its files are not PyPI's.
    """
    both = locked_torch() if locked else ["torch", "torchvision"]
    usual = [*HASHED, "--requirement", str(LOCKS / "torch.txt")] if locked else both
    have = installed_torch(python)
    if have:
        print(f"torch {have} is there (another build: make clean, then make install TORCH=cpu or cuda)", flush=True)
        return
    if build not in BUILDS:
        pip(python, *build.split(), *([] if "torchvision" in build else ["torchvision"]))
        if not fits(python):
            raise InstallError(f"{build} gave what does not go together: name versions that do, like {EXACT}")
        return
    wanted = build
    if build == "auto":
        wanted = "cuda" if has_gpu() or sys.platform != "linux" else "cpu"
        why = "there is an NVIDIA GPU" if has_gpu() else "there is no NVIDIA GPU"
        print(
            f"{why}: {'the usual build' if wanted == 'cuda' else 'the CPU build'} (TORCH=cpu, TORCH=cuda)", flush=True
        )
    if wanted == "cuda":
        pip(python, *usual)
        return
    try:
        install_cpu_build(python, index, both)
    except InstallError as trouble:
        if build == "cpu":
            raise InstallError(
                f"the CPU build of torch cannot be had from {index}; name a mirror with TORCH_INDEX=URL, or take the "
                "build of your usual index with TORCH=cuda (gigabytes of libraries, it runs on a CPU too)"
            ) from None
        tell_what_is_taken(index, trouble)
        pip(python, *usual)


def tell_what_is_taken(index: str, trouble: InstallError) -> None:
    """Say what is fetched in the place of the CPU build, while there is time to choose."""
    print(
        f"""the CPU build cannot be had from {index}: {trouble}.
In {CHOICE_SECONDS} s pip takes torch from your usual index. From PyPI, on Linux, that is the build for GPUs. It runs on
a CPU too, but is several gigabytes: minutes, on a slow line or a busy machine half an hour. Ctrl-C lets you choose now:
  make install TORCH_INDEX=URL                          a mirror of the CPU builds
  make install {EXACT}  versions that your index, or pip's find-links, has
  make install TORCH=cuda                               this build, without being asked""",
        flush=True,
    )
    time.sleep(CHOICE_SECONDS)


def locked_torch() -> list:
    """torch and torchvision with the versions that the lock pins."""
    lines = (LOCKS / "torch.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.startswith(("torch==", "torchvision=="))]


def install_cpu_build(python: Path, index: str, both: list) -> None:
    """Both packages from an index of CPU builds. Raises `InstallError`."""
    if not answers(index):
        raise InstallError(f"{index} does not answer")
    pip(python, "--index-url", index, *both)
    # pip also takes from places that its configuration names, and builds of different kinds do not go together
    if not fits(python):
        run([str(python), "-m", "pip", "uninstall", "--yes", "torch", "torchvision"], "pip could not take them away")
        raise InstallError("pip took torch and torchvision from places that do not go together")


def fits(python: Path) -> bool:
    """Whether the torch and the torchvision that are installed go together."""
    command = [str(python), "-c", "import torchvision"]
    return not subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).returncode


def answers(index: str) -> bool:
    """Whether an index of packages can be reached: pip would try each package for minutes."""
    try:
        page = "/torch/index.html" if index.startswith("file:") else "/torch/"  # as pip asks for it
        with urllib.request.urlopen(index.rstrip("/") + page, timeout=PROBE_SECONDS):
            return True
    except urllib.error.URLError as error:  # also for the answers 403 and 404
        return isinstance(error.reason, ssl.SSLError)  # pip has certificates of its own configuration
    except OSError:
        return False


def has_gpu() -> bool:
    """Whether an NVIDIA driver shows a GPU."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def is_new_enough(name: str) -> bool:
    """Whether there is a Python of that name that fedskew can use."""
    found = shutil.which(name)  # which may be a launcher for a version that is not there
    code = f"import venv, sys; sys.exit(sys.version_info < {OLDEST})"
    return found is not None and not subprocess.run([found, "-c", code], stderr=subprocess.DEVNULL).returncode


def is_usable(python: Path) -> bool:
    """Whether an environment that is there can be gone on with."""
    code = f"import pip, sys; sys.exit(sys.version_info < {OLDEST})"
    return python.exists() and not subprocess.run([str(python), "-c", code], stderr=subprocess.DEVNULL).returncode


def installed_torch(python: Path) -> str:
    """Version of torch in the environment; empty if there is none."""
    code = "import importlib.metadata as m; print(m.version('torch'), m.version('torchvision'))"
    found = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return found.stdout.split()[0] if not found.returncode else ""


def pip(python: Path, *words: str) -> None:
    """Run `pip install`, which shows its own progress."""
    run([str(python), "-m", "pip", "install", *words], "pip could not install it: its reason stands above")


def run(command: list, otherwise: str) -> None:
    """Run a command. Raises `InstallError` with `otherwise` if it fails."""
    print("$ " + " ".join(command), flush=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        code = subprocess.run(command, env=environment).returncode
    except OSError as error:
        raise InstallError(f"{otherwise} ({error})") from None
    if code:
        raise InstallError(otherwise)


def take_back(venv: Path, fresh: bool) -> None:
    """Leave no environment that only looks finished."""
    if fresh:
        shutil.rmtree(venv, ignore_errors=True)
        print(f"make install: {venv} was taken away again; what pip fetched it keeps for the next try", file=sys.stderr)
    else:
        print(f"make install: {venv} is incomplete; `make install` again completes it", file=sys.stderr)


def say(number: int, text: str) -> None:
    """Announce a step."""
    print(f"[{number}/{STEPS}] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
