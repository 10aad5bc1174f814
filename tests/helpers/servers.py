"""Real database servers on loopback, started by the tests: PostgreSQL, MariaDB."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy
import tenacity

READY_SECONDS = 30


class Server:
    """A database server with a data folder of its own. It can be killed and started again."""

    user: str
    """Whom it runs as where we are root, which neither server will be run by."""
    backend: str
    stop_signal: signal.Signals
    admin: str

    def __init__(self) -> None:
        # Not below pytest's own folder, which no other user may enter.
        self.folder = Path(tempfile.mkdtemp(prefix=f"evomerge-{self.backend}-", dir=_memory()))
        self._as = {"user": self.user, "group": self.user} if os.geteuid() == 0 else {}
        if self._as:
            account = pwd.getpwnam(self.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._databases = 0
        self._process: subprocess.Popen | None = None
        self._run(*self._initialize())
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        self._process = subprocess.Popen(
            self._serve(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
            **self._as,
        )
        self._wait_until_ready()

    def kill(self) -> None:
        """All its processes at once, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """In order, so that no shared memory is left behind."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(READY_SECONDS)
                self._process = None
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """The URL of an empty one."""
        self._databases += 1
        name = f"study{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str | None = None) -> list[tuple]:
        """As the administrator; the rows, if there are any."""
        engine = sqlalchemy.create_engine(
            self.url(database or self.admin), isolation_level="AUTOCOMMIT"
        )
        with contextlib.closing(engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        engine.dispose()
        return [tuple(row) for row in rows]

    @tenacity.retry(
        stop=tenacity.stop_after_delay(READY_SECONDS), wait=tenacity.wait_fixed(0.05), reraise=True
    )
    def _wait_until_ready(self) -> None:
        self.execute("SELECT 1")

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._as)


class PostgreSQL(Server):
    user, backend, admin = "postgres", "postgresql", "postgres"
    stop_signal = signal.SIGINT

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://evomerge@127.0.0.1:{self.port}/{database}"

    def _initialize(self) -> tuple[str, ...]:
        tell = ("--auth=trust", "--username=evomerge", "--encoding=UTF8", "--locale=C")
        return (_postgres("initdb"), f"--pgdata={self.folder}/data", "--no-sync", *tell)

    def _serve(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",  # a process is killed here, never the machine
            "shared_buffers": "16MB",
            "dynamic_shared_memory_type": "mmap",  # in the data folder, whatever is killed
        }
        options = [f"-c{key}={value}" for key, value in settings.items()]
        return [_postgres("postgres"), "-D", f"{self.folder}/data", *options]


class MariaDB(Server):
    user, backend, admin = "mysql", "mysql", "mysql"
    stop_signal = signal.SIGTERM

    def url(self, database: str) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{database}"

    def _initialize(self) -> tuple[str, ...]:
        return (
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={self.folder}/data",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=8M",
        )

    def _serve(self) -> list[str]:
        settings = {
            "datadir": self.folder / "data",
            "socket": self.folder / "socket",
            "pid-file": self.folder / "pid",
            "bind-address": "127.0.0.1",
            "port": self.port,
            "innodb-log-file-size": "8M",
            "innodb-flush-log-at-trx-commit": 2,  # as above
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return [shutil.which("mariadbd", path=PATH), "--no-defaults", *options]


def _memory() -> str | None:
    """A folder in memory that has room for a server: making databases is slow on disks."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 4 << 30
    return str(shared) if roomy and os.access(shared, os.W_OK) else None


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def _postgres(program: str) -> str | None:
    """Debian keeps the server's programs out of the path."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"))
    return found[-1] if found else shutil.which(program)


class Servers:
    """The test run's servers, each started when it is first asked for."""

    def __init__(self) -> None:
        self._running: dict[str, Server] = {}

    def of(self, backend: str) -> Server:
        """Of that kind, `postgresql` or `mysql`; skips where it is not installed."""
        if backend == "postgresql" and not _postgres("initdb"):
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        if backend == "mysql" and not shutil.which("mariadbd", path=PATH):
            pytest.skip("MariaDB is not installed (Debian: apt-get install mariadb-server)")
        if backend not in self._running:
            self._running[backend] = {"postgresql": PostgreSQL, "mysql": MariaDB}[backend]()
        return self._running[backend]

    def close(self) -> None:
        for server in self._running.values():
            server.close()
