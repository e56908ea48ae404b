"""Fixtures for projects that test against inv_design's records: ``pytest_plugins = ["inv_design.testing"]``.

``embedded_connection`` needs nothing. ``wire_server`` gives a server that speaks MongoDB's wire protocol: the one that
``INV_DESIGN_TEST_MONGODB`` names, or mongo-java-server, resolved by Maven and started on the loopback interface. Where
neither is possible its tests are skipped, or fail if ``INV_DESIGN_REQUIRE_WIRE=1``. ``connection`` runs a test on both.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

SERVER_VARIABLE = "INV_DESIGN_TEST_MONGODB"
REQUIRE_VARIABLE = "INV_DESIGN_REQUIRE_WIRE"
VERSION = "1.47.0"

TINY_MACE: dict[str, Any] = {
    "kind": "mace-scale-shift",
    "atomic_numbers": [13, 28, 29, 46],
    "atomic_energies": [-3.0, -5.0, -4.0, -4.5],
    "scale": 0.5,
    "shift": 0.0,
    "avg_num_neighbors": 40.0,
    "r_max": 4.0,
    "num_bessel": 4,
    "num_polynomial_cutoff": 5,
    "max_ell": 1,
    "num_interactions": 2,
    "hidden_irreps": "4x0e",
    "MLP_irreps": "4x0e",
    "correlation": 1,
    "radial_MLP": [8],
    "pair_repulsion": False,
}
"""The configuration of a MACE network for tests: four metals, a second to train."""

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>inv-design</groupId><artifactId>wire-server</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>de.bwaldvogel</groupId><artifactId>mongo-java-server</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>de.bwaldvogel</groupId><artifactId>mongo-java-server-h2-backend</artifactId><version>{VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

# Says its port on standard output, and ends when standard input does: it cannot outlive the tests, even killed ones.
# A "q" on standard input stops it in order: what it has acknowledged is in its file.
MAIN = """
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import org.h2.mvstore.MVStore;

public class WireServer {
    public static void main(String[] arguments) throws Exception {
        // 256 MB of cache: with the 16 MB that it has otherwise, each read of a large collection starts from the file
        MVStore store = new MVStore.Builder().fileName(arguments[0]).cacheSize(256).open();
        MongoServer server = new MongoServer(new H2Backend(store));
        server.bind("127.0.0.1", arguments.length > 1 ? Integer.parseInt(arguments[1]) : 0);
        System.out.println(server.getLocalAddress().getPort());
        for (int read = System.in.read(); read >= 0; read = System.in.read()) {
            if (read == 'q') {
                server.shutdownNow();
                break;
            }
        }
        Runtime.getRuntime().halt(0);
    }
}
"""


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of the tests that need the wire server."""
    config.addinivalue_line("markers", f"wire: needs the wire server (java and mvn, or {SERVER_VARIABLE})")


@pytest.fixture
def embedded_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """Give a connection to a new embedded database in the test's folder."""
    from stores.connection import connect

    _isolate(tmp_path, monkeypatch)
    connection = connect("embedded", root=tmp_path)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def wire_server() -> Iterator[str]:
    """Give the URI of a server that speaks MongoDB's protocol, without a database name."""
    if given := os.environ.get(SERVER_VARIABLE):
        yield given.rstrip("/")
        return
    with tempfile.TemporaryDirectory(prefix="inv-design-wire-") as data:
        server = WireServer(Path(data))
        server.start()
        yield server.uri
        server.close()


class WireServer:
    """A mongo-java-server of one's own, for tests that stop it.

    Parameters
    ----------
    folder
        Where its data and its log go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def uri(self) -> str:
        """Where it is, without a database name."""
        return f"mongodb://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, or start it again on the same port with the data that it has."""
        jars = _server_jars()
        command = ["java", "-Xmx1g", "-cp", f"{jars}/lib/*", f"{jars}/WireServer.java", f"{self.folder}/data.mv"]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        if not port.isdigit():
            self.process.kill()
            _unavailable(f"the wire server did not start: {(self.folder / 'log').read_text()[-500:]}")
        self.port = int(port)

    def stop(self) -> None:
        """Stop it in order; what it acknowledged is there when it is started again."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("q")
        self.close()

    def close(self) -> None:
        """End it."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process = None


@pytest.fixture
def wire_connection(wire_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """Give a connection to a new database on the wire server, dropped after the test."""
    from stores.connection import connect

    _isolate(tmp_path, monkeypatch)
    head, _, options = wire_server.partition("?")
    name = f"inv_design_test_{uuid.uuid4().hex[:12]}"
    connection = connect(f"{head.rstrip('/')}/{name}" + (f"?{options}" if options else ""))
    yield connection
    connection.client.drop_database(name)
    connection.close()


@pytest.fixture(params=["embedded", pytest.param("wire", marks=pytest.mark.wire)])
def connection(request: pytest.FixtureRequest) -> Connection:
    """Give a connection to an empty database: the test runs once embedded and once on the wire server."""
    return request.getfixturevalue(f"{request.param}_connection")


def _isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test from the user's database and journal."""
    from stores.connection import DATABASE_VARIABLE, PASSWORD_VARIABLE
    from stores.journal import FOLDER_VARIABLE

    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "journal"))


def _server_jars() -> Path:
    """Return the folder of the server's jars and main, resolved by Maven on first use."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            _unavailable(f"no {program} here; install it or set {SERVER_VARIABLE} to the URI of a MongoDB")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "inv_design" / f"wire-server-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes resolve once
        (folder / "WireServer.java").write_text(MAIN)
        if not (folder / "resolved").exists():
            (folder / "pom.xml").write_text(POM)
            command = ["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), "dependency:copy-dependencies"]
            done = subprocess.run(
                [*command, f"-DoutputDirectory={folder / 'lib'}"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                _unavailable(f"mvn could not resolve mongo-java-server {VERSION}: {done.stdout[-300:]}")
            (folder / "resolved").touch()
    return folder


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{REQUIRE_VARIABLE}=1, but {reason}")
    pytest.skip(reason)


def tiny_mace() -> bytes:
    """Return the model file of an untrained network of :data:`TINY_MACE`, for tests of training and of calculators."""
    from inv_design.calculators.mace_model import build_network, network_tensors
    from inv_design.weights import pack

    return pack(network_tensors(build_network(TINY_MACE, "float32")), TINY_MACE)
