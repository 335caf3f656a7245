"""A whole federation of real processes: SuperLink with TLS and node authentication, nginx before it, SuperNodes.

    with Cluster(folder) as cluster:
        cluster.start()
        assert cluster.run("federation.rounds=2").wait(300) == 0

As root, with iproute2 and nftables, every site is a network namespace behind its own firewall and `cut` pulls its
cable; otherwise all share the loopback. Every process belongs to a session that the cluster began, so that `close`
finds them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import yaml
from deployment.processes import Job, default_signals, free_port, user_name, wait_until

from fedskew.demo.generator import generate
from fedskew.ops.bundle import bundle_hash
from fedskew.ops.credentials import make_credentials

ROOT = Path(__file__).resolve().parents[2]
NETNS = Path(__file__).with_name("netns.sh")
APP = ("pyproject.toml", "LICENSE", "clientapp.py", "serverapp.py", "fedskew", "plugins", "conf")
FEDSKEW = (sys.executable, "-c", "from fedskew.cli.main import app; app()")
SETTINGS = (
    "model.name=swin_micro_patch4_window4_32 train.batch-size=16 train.local-epochs=1 train.threads=1 train.lr=1e-3 "
    "run.threads=1 prune.first-round=1 prune.last-round=0 prune.steps-per-stage=1 prune.calibrate=true "
    "prune.batch-size=16 federation.rounds=3 federation.min-nodes=3 federation.quorum=1 federation.join-deadline=120 "
    "federation.round-deadline=300 federation.grace=0 federation.aggregation=mean"  # a round of one or two sites counts
)
HEALTH = (
    "import ssl,sys,urllib.request as u;"
    "u.urlopen(sys.argv[1]+'/health',timeout=float(sys.argv[3]),context=ssl.create_default_context(cafile=sys.argv[2]))"
)

RESTART = 'while :; do "$@"; sleep 5; done'  # systemd's Restart=always, RestartSec=5

STATUS = """
import sys, urllib.error, urllib.request
try: print(urllib.request.urlopen(sys.argv[1], timeout=5).status)
except urllib.error.HTTPError as error: print(error.code)
except OSError: print(0)
"""


def namespaces_work() -> str:
    """Empty if sites can be network namespaces here; otherwise why not."""
    if os.environ.get("FEDSKEW_TEST_LOOPBACK"):
        return "FEDSKEW_TEST_LOOPBACK is set"
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "nft", "nginx") if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)}"
    probe = subprocess.run(["ip", "netns", "add", f"probe-{os.getpid()}"], capture_output=True, check=False)
    if probe.returncode:
        return probe.stderr.decode().strip() or "ip netns add failed"
    subprocess.run(["ip", "netns", "del", f"probe-{os.getpid()}"], check=False)
    return ""


class Cluster:
    """The processes of one coordinator and its sites, below one folder.

    Args:
        sites: how many.
        images: in each site's own data folder (another seed each), and in the server's.
        restarting: SuperLink, proxy and sites are started again whenever they end, as systemd does it.
        pinned: sites have a policy that pins the app's bundle.
    """

    def __init__(self, folder: Path, *, sites: int = 3, images: int = 48, pinned: bool = True,
                 restarting: bool = False, size: tuple[int, int] = (64, 48)) -> None:  # fmt: skip
        self.folder, self.pinned, self.restarting = folder, pinned, restarting
        self.sites = tuple(f"site-{letter}" for letter in "abcdefgh"[:sites])
        self.why_loopback = namespaces_work()
        self.prefix = "" if self.why_loopback else f"fs{os.getpid() % 100_000}"
        self.jobs: dict[str, Job] = {}
        self.environment: dict[str, str] = {}  # more variables for every process
        self._sessions: list[int] = []
        self._started: dict[str, int] = {}
        self.app, self.runs = folder / "app", folder / "runs"
        self.has_proxy = bool(shutil.which("nginx"))
        names = ("superlink", "proxy", "gate", *self.sites)
        self._ports = {name: free_port() for name in names} if self.why_loopback else {}
        self._make_app()
        for number, site in enumerate(self.sites, start=1):
            generate(folder / "data" / site, images=images, seed=number, size=size)
        generate(folder / "data" / "public", images=images + images // 2, seed=99, size=size)
        make_credentials(folder / "pki", hosts=[self.host, "127.0.0.1"], sites=self.sites, days=2)

    @property
    def host(self) -> str:
        """Where sites find the coordinator."""
        return "127.0.0.1" if self.why_loopback else "10.77.0.1"

    @property
    def control(self) -> str:
        """Where the coordinator's own people find the SuperLink."""
        return f"127.0.0.1:{self._ports.get('superlink', 8000)}"

    @property
    def public(self) -> str:
        """The only address that sites are given."""
        if not self.has_proxy:
            return self.control
        return f"{self.host}:{self._ports.get('proxy', 8443)}"

    def __enter__(self) -> Cluster:
        if self.prefix:
            subprocess.run([NETNS, self.prefix, "up", str(len(self.sites))], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """SuperLink, proxy, registration, sites."""
        self.start_superlink()
        if self.has_proxy:
            self.start_proxy()
        for site in self.sites:
            self.register(site)
            self.start_site(site)

    def start_superlink(self) -> Job:
        """The SuperLink, on the loopback of the coordinator; it keeps its database over restarts."""
        pki, (host, port) = self.folder / "pki" / "coordinator", self.control.rsplit(":", 1)
        job = self.spawn("superlink", "coordinator", [
            "flower-superlink", "--host", host, "--port", port, "--enable-supernode-auth",
            "--ssl-ca-certfile", f"{pki}/ca.crt", "--ssl-certfile", f"{pki}/server.pem",
            "--ssl-keyfile", f"{pki}/server.key", "--database", f"{self.folder}/state.db",
        ], restart=self.restarting)  # fmt: skip
        self._wait_for_health(self.control, job)
        return job

    def start_proxy(self) -> Job:
        """nginx with the configuration that is shipped, its names and paths replaced."""
        home = self.folder / "nginx"
        home.mkdir(exist_ok=True)
        text = (ROOT / "docker" / "nginx.conf").read_text(encoding="utf-8")
        for old, new in (
            ("/tmp/", f"{home}/"),  # the first: what follows may lie below /tmp
            ("superlink:8000", self.control),
            ("/pki/", f"{self.folder}/pki/coordinator/"),
            ("/dev/stdout", str(self.wire_log)),
            ("listen 8443;", f"listen {self.public};"),
            ("127.0.0.1:8444", f"127.0.0.1:{self._ports.get('gate', 8444)}"),
        ):
            assert old in text
            text = text.replace(old, new)
        (home / "nginx.conf").write_text(text, encoding="utf-8")
        command = ["nginx", "-c", str(home / "nginx.conf"), "-e", str(home / "error.log")]
        command += ["-g", f"daemon off; user {user_name()};"]
        job = self.spawn("proxy", "coordinator", command, restart=self.restarting)
        self._wait_for_health(self.public, job)
        return job

    @property
    def wire_log(self) -> Path:
        """nginx's line for every request: who, what, bytes in and out."""
        return self.folder / "nginx" / "wire.jsonl"

    def register(self, site: str) -> None:
        """Tell the SuperLink a site's public key."""
        done = self.flwr(
            "supernode", "register", f"{self.folder}/pki/coordinator/{site}.pub", "hospital", "--name", site
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def flwr(self, *words: str, place: str = "coordinator") -> subprocess.CompletedProcess[str]:
        """Flower's command line at the coordinator, or at a site."""
        self._connections(place)
        return subprocess.run([*self._inside(place), "flwr", *words], env=self._environment(place), text=True,
                              capture_output=True, timeout=120, check=False)  # fmt: skip

    def site_command(self, site: str, *, key: str = "", app_hashes: list[str] | None = None) -> list[str]:
        """The command that starts a site's SuperNode.

        Args:
            key: whose private key it shows; its own if empty.
            app_hashes: pinned bundles; that of `self.app` if None.
        """
        home, pki = self.folder / site, self.folder / "pki"
        home.mkdir(exist_ok=True)
        node = f"data-dir='{self.folder}/data/{site}' name='{site}' audit-log='{home}/audit.jsonl'"
        if self.pinned:
            policy = {"app-hashes": [bundle_hash(self.app)] if app_hashes is None else app_hashes, "min-examples": 5}
            (home / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
            node += f" policy='{home}/policy.yaml'"
        port = str(self._ports.get(site, 9094))
        return [
            *FEDSKEW, "site", "--superlink", self.public, "--root-certificates", f"{pki}/{site}/ca.crt",
            "--auth-supernode-private-key", f"{pki}/{key or site}/node.key", "--port", port, "--node-config", node,
        ]  # fmt: skip

    def start_site(self, site: str, environment: Mapping[str, str] | None = None, **settings: object) -> Job:
        """A site's SuperNode, with more variables; see `site_command`."""
        command = self.site_command(site, **settings)
        return self.spawn(site, site, command, restart=self.restarting, **(environment or {}))

    def health(self, site: str) -> int:
        """Status of a site's own /health; 0 if nothing answers."""
        url = f"http://127.0.0.1:{self._ports.get(site, 9094)}/health"
        command = [*self._inside(site), sys.executable, "-c", STATUS, url]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def restart_site(self, site: str, seconds: float = 120.0) -> None:
        """As systemd does: start again every five seconds until the SuperLink has given the old one up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.start_site(site)
            try:
                wait_until(lambda job=job: "SuperNode ID:" in job.text() or job.process.poll() is not None, 60)
            except AssertionError:
                job.kill(children=True)
            if "SuperNode ID:" in job.text():
                return
            time.sleep(5)
        raise AssertionError(f"{site} could not rejoin within {seconds} s:\n{self.jobs[site].tail()}")

    def run(self, settings: str = "", *, supervised: bool = True, resume: Path | None = None, app: Path | None = None,
            name: str = "run", preset: str = "hospitals", base: str = SETTINGS) -> Job:  # fmt: skip
        """`fedskew run` at the coordinator, from the cluster's copy of the app; its run folder is below `runs/name`."""
        words = [*FEDSKEW, "run", "--connection", "hospital", *(["--supervise"] if supervised else [])]
        if resume:
            words += ["--resume", str(resume)]
        else:
            words += ["--preset", preset, "--data-dir", f"{self.folder}/data/public"]
            words += ["--output-dir", str(self.runs / name), "--set", f"{base} {settings}"]
        self._connections("coordinator")
        return self.spawn(name, "coordinator", words, PYTHONPATH=str(app or self.app))

    def run_folder(self, name: str = "run") -> Path | None:
        """The one run folder below `runs/name`, once it is there."""
        found = sorted((self.runs / name).glob("*/config.yaml"))
        return found[0].parent if found else None

    def records(self, name: str = "run") -> list[dict]:
        """The finished rounds of a run."""
        folder = self.run_folder(name)
        path = folder / "metrics.jsonl" if folder else None
        text = path.read_text(encoding="utf-8") if path and path.is_file() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def task_seconds(self, place: str, kind: str = "flwr-clientapp") -> float:
        """CPU seconds of the app process that a site (or the SuperLink) is running now; 0 if none."""
        job = self.jobs[place]
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(job.process.pid).children(recursive=True):
                if any(kind in word for word in child.cmdline()):
                    times = child.cpu_times()
                    return times.user + times.system
        return 0.0

    def cut(self, site: str) -> None:
        """Pull a site's network cable."""
        assert self.prefix, "only with network namespaces"
        subprocess.run([NETNS, self.prefix, "cut", str(self.sites.index(site) + 1)], check=True)

    def mend(self, site: str) -> None:
        """Plug it in again."""
        subprocess.run([NETNS, self.prefix, "mend", str(self.sites.index(site) + 1)], check=True)

    def slow(self, site: str, rate: str) -> None:
        """Let a site's cable carry no more than a rate (`500kbit`) in each direction."""
        subprocess.run([NETNS, self.prefix, "slow", str(self.sites.index(site) + 1), rate], check=True)

    def below(self, name: str, word: str = "") -> list[psutil.Process]:
        """What a process of the cluster has started and what these started; with a word in their name or command."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.jobs[name].process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if not word or word == process.name() or any(word in part for part in process.cmdline()[:2]):
                        found.append(process)
        return found

    def crash(self, name: str) -> None:
        """SIGKILL to something that restarts, and to all that it has started: it comes back by itself."""
        assert self.restarting
        for process in self.below(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def spawn(self, name: str, place: str, command: list[str], *, restart: bool = False, **more: str) -> Job:
        """Start a process at the coordinator or at a site; with `restart` it is started again whenever it ends."""
        command = ["bash", "-c", RESTART, "restart", *command] if restart else command
        self._started[name] = number = self._started.get(name, 0) + 1
        log = self.folder / "log" / f"{name}-{number}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self._inside(place), *command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self._environment(place) | more, cwd=self.folder, start_new_session=True,
                preexec_fn=default_signals,
            )  # fmt: skip
        self._sessions.append(process.pid)
        self.jobs[name] = Job(name, process, log)
        return self.jobs[name]

    def close(self) -> None:
        """End everything that was started, and take the network down."""
        for process in list(self._processes()):
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(list(self._processes()), timeout=5)
        for process in [*alive, *self._processes()]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for job in self.jobs.values():
            job.process.wait(10)
        if self.prefix:
            subprocess.run([NETNS, self.prefix, "down", str(len(self.sites))], check=False)

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.getsid(process.pid) in self._sessions and process.pid != os.getpid():
                    yield process

    def _inside(self, place: str) -> list[str]:
        if not self.prefix:
            return []
        name = "coord" if place == "coordinator" else f"site-{self.sites.index(place) + 1}"
        return ["ip", "netns", "exec", f"{self.prefix}-{name}"]

    def _environment(self, place: str) -> dict[str, str]:
        home = self.folder / place
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home / "flwr"),
            "FEDSKEW_HOME": str(home / "fedskew"),
            "TMPDIR": str(home / "tmp"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "OMP_NUM_THREADS": "1",
        } | self.environment  # fmt: skip

    def _connections(self, place: str) -> None:
        """`hospital` is the SuperLink's own address, `public` the one that sites have."""
        home = self.folder / place / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        ca = self.folder / "pki" / "coordinator" / "ca.crt"
        parts = [f'[superlink.{name}]\naddress = "{address}"\nroot-certificates = "{ca}"\n'
                 for name, address in (("hospital", self.control), ("public", self.public))]  # fmt: skip
        (home / "config.toml").write_text('[superlink]\ndefault = "hospital"\n' + "".join(parts), encoding="utf-8")

    def answers(self, address: str, place: str = "coordinator", seconds: float = 3) -> bool:
        """Whether `GET /health` there works from a place, within some seconds."""
        ca = str(self.folder / "pki" / "coordinator" / "ca.crt")
        command = [*self._inside(place), sys.executable, "-c", HEALTH, f"https://{address}", ca, str(seconds)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _wait_for_health(self, address: str, job: Job) -> None:
        def healthy() -> bool:
            assert job.process.poll() is None, f"{job.name} ended:\n{job.tail()}"
            return self.answers(address)

        wait_until(healthy, 60, every=0.3)

    def _make_app(self) -> None:
        """A copy of the app: the checkout may change while the cluster runs."""
        self.app.mkdir(parents=True)
        for name in APP:
            source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
            (shutil.copytree if source.is_dir() else shutil.copy)(
                source, self.app / name, **({"ignore": ignored} if source.is_dir() else {})
            )
