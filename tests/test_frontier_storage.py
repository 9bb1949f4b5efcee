"""Storages: what is wrong with one is said at once, and PostgreSQL serves as SQLite does."""

import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from test_frontier_queue import check_each_once, together

from holdfast.errors import HoldfastError
from holdfast.frontier import storage
from holdfast.frontier.storage import open_storage, patiently, shown

DRIVER = find_spec("psycopg") is not None


def message(url):
    with pytest.raises(HoldfastError) as caught:
        open_storage(url)
    return str(caught.value)


def test_a_text_that_is_no_url():
    assert "is no URL of a database" in message("frontier.db")
    assert "is no URL of a database" in message("nonesuch://host/x")
    assert "is in memory" in message("sqlite://")


def test_a_driver_that_is_missing_comes_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # import psycopg fails, whether it is installed or not
    assert 'pip install "psycopg[binary]"' in message("postgresql://localhost:1/x")
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    assert 'pip install "psycopg2-binary"' in message("postgresql+psycopg2://localhost:1/x")


@pytest.mark.skipif(not DRIVER, reason="psycopg is not installed")
def test_a_server_that_does_not_answer():
    said = message("postgresql://user:secret@localhost:1/x")
    assert "does not answer" in said
    assert "secret" not in said


def test_optuna_that_is_missing_comes_with_the_line_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'pip install "holdfast[sweep]"' in message(f"sqlite:///{tmp_path}/study.db")


def test_a_file_that_can_not_be_used(tmp_path):
    (tmp_path / "text.db").write_text("no database at all" * 100)
    assert "file is not a database" in message(f"sqlite:///{tmp_path}/text.db")
    assert (tmp_path / "text.db").read_text().startswith("no database")
    assert "could not write" in message(f"sqlite:///{tmp_path}/text.db/study.db")
    (tmp_path / "folder.db").mkdir()
    assert "can't be used" in message(f"sqlite:///{tmp_path}/folder.db")


def test_passwords_are_not_shown():
    assert shown("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"


def test_a_storage_that_stutters_is_asked_again_and_one_that_is_gone_is_said_to_be(monkeypatch):
    from sqlalchemy.exc import OperationalError

    slept = []
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    answers = [OperationalError("", None, Exception("server closed the connection")), "row"]

    def ask(argument):
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer, argument

    assert patiently("postgresql://h/x", ask, 3) == ("row", 3)
    assert len(slept) == 1
    answers[:] = [OperationalError("", None, Exception("server closed the connection"))]
    with pytest.raises(HoldfastError, match="does not answer: server closed the connection"):
        patiently("postgresql://h/x", ask, 3)
    assert len(slept) == 1 + len(storage.PATIENCE)


@pytest.fixture
def server(tmp_path):
    """The URL of a PostgreSQL server of the test's own."""
    missing = [name for name in ("initdb", "pg_ctl") if shutil.which(name) is None] + ([] if DRIVER else ["psycopg"])
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    place = Path(f"/tmp/holdfast-postgres-{os.getpid()}") if root else tmp_path / "postgres"  # its owner must reach it
    place.mkdir(mode=0o700)
    if root:
        shutil.chown(place, "postgres")  # PostgreSQL refuses to run as root
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def go(*command):
        ran = subprocess.run(
            command, user="postgres" if root else None, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=60, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr

    data = str(place / "data")
    try:
        go("initdb", "-D", data, "-A", "trust", "-U", "tester", "-E", "UTF8", "-N")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
        go("pg_ctl", "-D", data, "-w", "-l", str(place / "log"), "-o", options, "start")
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        go("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_postgresql_serves_processes_that_start_at_once(server):
    check_each_once(server, together(server, 3))
