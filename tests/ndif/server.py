"""The real ndif server on this machine's CPU: redis, an object store, Ray with ndif's controller, ndif's API.

    with Server(sandbox=True) as server:
        CONFIG.API.HOST = server.url

or, around any command, which finds the server in `NDIF_HOST`:

    python -m tests.ndif.namespace python -m tests.ndif.server --sandbox COMMAND...

It starts only where no network but `lo` is seen (see `tests.ndif.namespace`), since Ray listens on every interface.
All of its processes work in one folder, and all that they write is there: that is how they are found again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.ndif import keys as key_database
from tests.ndif import namespace
from tests.support.waiting import DEADLINE, wait_until

HERE = Path(__file__).parent
BIN = HERE.parents[1] / ".venv-ndif" / "bin"
API, REDIS, STORE, RAY, RAY_CLIENT = 8001, 6379, 9000, 6385, 10001
LARGEST_REQUEST = 64 * 1024**2  # bytes; redis itself takes 512 MiB, and refuses what is larger in the same way
GIB = 1024**3
LONGEST_FOLDER = 30  # Ray makes Unix sockets far below it, whose paths may have 107 characters


class ServerError(RuntimeError):
    """The server did not do what it should have; the log's end is in the message."""


def why_not() -> str | None:
    """Why the server cannot run here, if it cannot."""
    if not (BIN / "ray").is_file():
        return "ndif is not installed in .venv-ndif; run make test-ndif"
    if shutil.which("redis-server") is None:
        return "there is no redis-server on this machine"
    if not namespace.is_alone():
        return "other networks than lo are in reach; run make test-ndif, or python -m tests.ndif.namespace COMMAND"
    return None


def model_key(model: str | Path) -> str:
    """The name by which a server knows a model: nnsight's `to_model_key` of a text generator without a revision."""
    identity = {"repo_id": str(model), "revision": None, "task": "text-generation"}
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps(identity)}"


class Server:
    """One running server. `url` is its API; `folder` holds the logs, one file for each service.

    `sandbox` runs every request's block in a process of its own. `models` are loaded before the server counts as
    started; others are loaded when first asked for. It accepts everybody, until its API is started again with keys.
    """

    def __init__(self, *, sandbox: bool = False, dtype: str = "float32", models: Sequence[str | Path] = ()) -> None:
        self.sandbox = sandbox
        self.dtype = dtype
        self.models = [model_key(model) for model in models]
        self.url = f"http://127.0.0.1:{API}"
        self.services: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Server:
        reason = why_not()
        if reason is not None:
            raise ServerError(f"the server cannot run here: {reason}")
        self.folder = Path(tempfile.mkdtemp(prefix="ndif-"))
        try:
            assert len(str(self.folder)) <= LONGEST_FOLDER, f"{self.folder}: too long for Ray's sockets"
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes and remove the folder."""

        def ended() -> bool:
            running = self.processes()
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not running

        self.wait("the end of all processes", ended)
        for service in self.services.values():
            service.wait(DEADLINE)
        shutil.rmtree(self.folder)

    def start(self) -> None:
        self.launch("redis", [
            "redis-server", "--bind", "127.0.0.1", "--port", str(REDIS), "--save", "",
            "--proto-max-bulk-len", str(LARGEST_REQUEST),
        ])  # fmt: skip
        self.launch("store", [BIN / "moto_server", "-H", "127.0.0.1", "-p", str(STORE)])
        self.launch("ray", [
            BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={RAY}",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true",
            f"--temp-dir={self.folder / 'ray'}", f"--object-store-memory={GIB // 2}",
            "--num-cpus=16", "--num-gpus=1",  # what ndif counts with, not what there is
            "--resources=" + json.dumps({"head": 10, "cuda_memory_bytes": 16 * GIB, "cpu_memory_bytes": 8 * GIB}),
        ])  # fmt: skip
        for name, port in {"redis": REDIS, "store": STORE, "ray": RAY_CLIENT}.items():
            self.wait(f"port {port}", lambda port=port: listens(port), name)
        self.launch("controller", [BIN / "python", "-m", "ndif.services.ray.deployments.controller.controller"])
        self.start_api()
        for model in self.models:
            self.wait(f"the loading of {model}", lambda model=model: self.is_running(model), "ray")

    def start_keys(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Start the database of API keys, which the API reads where it is started with keys."""
        self.launch("initdb", key_database.make_database(self.folder))
        self.wait("a new database", lambda: self.services["initdb"].poll() == 0, "initdb")
        self.launch("keys", key_database.serve_database(self.folder))
        ready = key_database.is_ready()
        self.wait("the database", lambda: subprocess.run(ready, capture_output=True).returncode == 0, "keys")
        self.launch("psql", key_database.enter(key_database.statements(keys)))
        self.wait("the keys' entry", lambda: self.services["psql"].poll() == 0, "psql")

    def start_api(self, with_keys: bool = False) -> None:
        """Start the API and wait until it has found Ray."""
        self.with_keys = with_keys
        self.launch("api", [
            BIN / "gunicorn", "--config", "python:ndif.services.api.gunicorn_conf", "ndif.services.api.app:app",
        ])  # fmt: skip
        self.wait("the API's connection to Ray", lambda: get(f"{self.url}/connected") is not None, "api", "controller")

    def kill_api(self) -> None:
        """Kill the API and its dispatcher, as a crash would; what redis, the store and Ray hold stays.

        Returns when all of its processes have ended and its port refuses connections.
        """
        api = self.services.pop("api")
        os.killpg(api.pid, signal.SIGKILL)
        api.wait()
        wait_until(lambda: not group_exists(api.pid) and not listens(API), "the end of the API")
        # The killed dispatcher stored here that it had reached Ray; the next one has to find that out.
        subprocess.run(["redis-cli", "-p", str(REDIS), "del", "ray:connected"], check=True, capture_output=True)

    def restart_api(self, with_keys: bool = False) -> None:
        if "api" in self.services:
            self.kill_api()
        self.start_api(with_keys)

    def ensure_api(self) -> None:
        """Start the API again where a failed test left it dead."""
        if "api" not in self.services or self.services["api"].poll() is not None:
            self.restart_api()

    def is_running(self, model: str) -> bool:
        """Whether a replica of a model has been loaded."""
        status = get(f"{self.url}/status") or {"deployments": {}}
        found = [one for one in status["deployments"].values() if one.get("model_key") == model]
        return any(one["application_state"] == "RUNNING" for one in found)

    def launch(self, name: str, command: Sequence[str | Path]) -> None:
        """Start a service in a process group of its own, with its log in the folder."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self.services[name] = subprocess.Popen(
                command, env=self.environment(name), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def environment(self, name: str) -> dict[str, str]:
        """What a service's process sees: nothing of ours but the actors, so that our code has to travel."""
        actor = "SandboxedCpuModelActor" if self.sandbox else "CpuModelActor"
        shared = {
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(HERE / "serving"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{REDIS}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{STORE}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{RAY_CLIENT}",
            "NDIF_API_PORT": str(API),
            "NDIF_MODEL_IMPORT_PATH": f"cpu_actor.{actor}",
            "NDIF_CONTROLLER_IMPORT_PATH": "cpu_controller.Controller",
            "NDIF_DEFAULT_DTYPE": self.dtype,
            "NDIF_SANDBOX_POOL_SIZE": "1",
            "NDIF_STATUS_TTL_S": "1",  # seconds for which the API repeats what it last knew of the models
            "GRPC_ENABLE_FORK_SUPPORT": "0",  # as in ndif's own start script: else Ray's client servers do not start
            # Ray's own deadlines, longer: on a busy machine its parts start slowly and answer late.
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_health_check_timeout_ms": "60000",
            "RAY_health_check_initial_delay_ms": "60000",
        }
        if name == "api":
            config = self.folder / "api.yaml"
            config.write_text("APP: {PYMOUNT: false}\n")  # nnsight's `.save` on every object breaks forms over 1 MiB
            shared["NNSIGHT_CONFIG"] = str(config)
            shared["NDIF_POSTGRES_URL"] = key_database.URL if self.with_keys else ""
        if name == "controller":
            shared["RAY_ADDRESS"] = f"127.0.0.1:{RAY}"
            shared["NDIF_DEPLOYMENTS"] = "|".join(self.models)
        return shared

    def wait(self, what: str, condition: Callable[[], object], *names: str) -> None:
        """Wait until a condition holds; fail where one of the services that it depends on fails, or in the end."""

        def holds() -> bool:
            for name in names:
                if self.services[name].poll() not in (None, 0):
                    code = self.services[name].returncode
                    raise ServerError(f"{name} ended with {code} before {what} was there\n{self.tail(name)}")
            return bool(condition())

        try:
            wait_until(holds, what, every=0.25)
        except TimeoutError as error:
            raise ServerError("\n".join([str(error), *map(self.tail, names)])) from None

    def tail(self, name: str, lines: int = 30) -> str:
        """The end of a service's log."""
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        return "\n".join([f"{name}:", *log.splitlines()[-lines:]])

    def processes(self) -> list[int]:
        """The processes that work in the server's folder."""
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):  # it ended meanwhile, or is not ours to read
                if link.readlink().is_relative_to(self.folder):
                    found.append(int(link.parent.name))
        return found


def group_exists(group: int) -> bool:
    """Whether a process group still has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def get(url: str) -> dict | None:
    """The JSON at an address; None where there is none yet."""
    try:
        with urlopen(url, timeout=10) as response:
            return json.load(response)
    except (HTTPError, URLError, OSError):
        return None


def main() -> int:
    """Run a command beside a server, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.ndif.server", description=main.__doc__)
    parser.add_argument("--sandbox", action="store_true", help="run every request's block in a process of its own")
    parser.add_argument("--dtype", default="float32", help="of the models' weights")
    parser.add_argument("--model", action="append", default=[], help="a folder or Hub id to load at the start")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="finds the server's address in NDIF_HOST")
    asked = parser.parse_args()
    with Server(sandbox=asked.sandbox, dtype=asked.dtype, models=asked.model) as server:
        return subprocess.run(asked.command, env={**os.environ, "NDIF_HOST": server.url}).returncode


if __name__ == "__main__":
    sys.exit(main())
