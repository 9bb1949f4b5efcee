"""The database of a study: SQLite beside the results, or one that many machines reach by its URL."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from holdfast.errors import HoldfastError
from holdfast.files import locked, require_writable

FILE = "study.db"
HEARTBEAT = 20  # seconds between two signs of life of a run
GRACE = 180  # seconds without one, after which a run counts as killed
PATIENCE = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try, where the storage does not answer
ANSWERS = 10  # seconds that a server has to answer in
LOCKED = 60  # seconds that SQLite waits for another process
# What to install for a URL's first part.
DRIVERS = {
    "postgresql": "psycopg[binary]",
    "postgresql+psycopg": "psycopg[binary]",
    "postgresql+psycopg2": "psycopg2-binary",
}
Result = TypeVar("Result")


def url_of(storage: str | None, out: Path) -> str:
    """The URL of the storage that a recipe names, or of the file in `out`."""
    return f"sqlite:///{(out / FILE).resolve()}" if storage is None else storage


def shown(url: str) -> str:
    """A storage URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def open_storage(url: str) -> Any:
    """Optuna's storage at that URL.

    Args:
        url: SQLAlchemy's.

    Raises:
        HoldfastError: Optuna or the database's driver is not installed, no URL, nothing that answers, a file that
            can't be written or is no database, tables of another version.
    """
    optuna = _optuna()
    path = _file_of(url)
    if path is not None:
        require_writable(path.parent)
    with _explained(url), _quietly(), nullcontext() if path is None else locked(path.with_name(f".{path.name}.lock")):
        storage = _made(
            lambda: optuna.storages.RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": _connecting(url)},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
            )
        )
    if path is not None:
        _take_turns(storage.engine)
    return storage


def _made(make: Callable[[], Any]) -> Any:
    """The storage, its tables made where there are none; of processes that make them at once, one succeeds."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for seconds in PATIENCE[:4]:
        try:
            return make()
        except (IntegrityError, ProgrammingError):  # another has made a table between the look and the making
            time.sleep(seconds)
    return make()


def has_studies(url: str) -> bool:
    """Whether there are studies at that URL; nothing is made.

    Raises:
        HoldfastError: see `open_storage`.
    """
    _optuna()
    path = _file_of(url)
    if path is not None:
        return path.is_file()
    from sqlalchemy import create_engine, inspect

    with _explained(url):
        return inspect(create_engine(url, connect_args=_connecting(url))).has_table("studies")


def patiently(url: str, ask: Callable[..., Result], *arguments: Any) -> Result:
    """What the storage answers to ask(*arguments); it is asked again for a minute before it counts as gone.

    Raises:
        HoldfastError: it does not answer.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    for seconds in (*PATIENCE, None):
        try:
            with _quietly():
                return ask(*arguments)
        except (StorageInternalError, SQLAlchemyError) as error:
            if seconds is None:
                raise _unanswered(url, error.__cause__ or error) from error
            time.sleep(seconds)
    raise AssertionError


def _connecting(url: str) -> dict[str, Any]:
    """How long a database may take to answer."""
    if _file_of(url) is not None:
        return {"timeout": LOCKED}
    return {"connect_timeout": ANSWERS} if url.startswith("postgresql") else {}


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """What goes wrong while a storage is opened, as messages."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise _no_driver(url, error) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise HoldfastError(
            f"the storage {shown(url)!r} is no URL of a database: {_first_line(error)}",
            wanted="postgresql://USER:PASSWORD@HOST/DATABASE, sqlite:///PATH, or no --storage for a file in --out",
        ) from error
    except SQLAlchemyError as error:
        raise _unanswered(url, error) from error
    except RuntimeError as error:  # tables that another version of Optuna made
        raise HoldfastError(
            f"the storage {shown(url)} can't be used: {_first_line(error)}", remedy="name another --storage"
        ) from error


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise HoldfastError(
            f"a frontier is an Optuna study, and {error.name} is not installed",
            remedy='pip install "holdfast[sweep]"',
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's notes that heartbeats are experimental, and meant for its own loop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"optuna\b|holdfast\b")
        yield


def _file_of(url: str) -> Path | None:
    """The file of an SQLite URL; None for other databases."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        made = make_url(url)
    except ArgumentError:
        return None
    if made.get_backend_name() != "sqlite":
        return None
    if not made.database:
        raise HoldfastError(f"the storage {url} is in memory, and a study has to last", wanted="sqlite:///PATH")
    return Path(made.database)


def _take_turns(engine: Any) -> None:
    """Every transaction takes SQLite's write lock at its beginning, so that two never claim one run.

    The driver's own way begins a transaction at the first write: what was read before it may have changed by then.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were made without


def _no_driver(url: str, error: ImportError) -> HoldfastError:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    package = DRIVERS.get(url.partition(":")[0])
    return HoldfastError(
        f"the storage {shown(url)} needs a driver that is not installed: {cause.name or cause}",
        remedy=f'pip install "{package}"' if package else f"install the Python package that has {cause.name}",
    )


def _unanswered(url: str, error: BaseException) -> HoldfastError:
    said = _first_line(getattr(error, "orig", None) or error)
    file = _file_of(url)
    if file is not None:
        return HoldfastError(
            f"the storage {file} can't be used: {said}",
            wanted="an SQLite file in a folder that can be written to, or none yet",
            causes=["the file is not a database", "the disk is full, or the file is not yours to write"],
            remedy="name another --storage; finished runs are kept in --out, and nothing was changed",
        )
    return HoldfastError(
        f"the storage {shown(url)} does not answer: {said}",
        causes=["the database is not running, or at another host or port", "the user or the password is wrong"],
        remedy="check it with the database's own client; the same command then goes on, and nothing is lost",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
