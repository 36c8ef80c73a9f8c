"""The address of the tracking store as people write it: read, or refused with what is meant."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from paramtransfer.errors import StoreError
from paramtransfer.suggestions import did_you_mean

VARIABLE = "MLFLOW_TRACKING_URI"
_DATABASES = ("postgresql", "mysql", "mssql")
_SCHEMES = ("http", "https", "sqlite", *_DATABASES, "databricks", "databricks-uc", "uc")
_PACKAGES = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # where the module has another name


def store_uri(folder: Path) -> str:
    """The address of the store: `MLFLOW_TRACKING_URI`, or a SQLite file in a folder.

    Raises:
        StoreError: it is no address of a store; says what is meant.
    """
    uri = os.environ.get(VARIABLE, "").strip().strip("'\"")
    if not uri:
        return sqlite_uri(folder.absolute() / "mlflow.db")
    scheme, separator, rest = uri.partition("://")
    if not separator and uri not in _SCHEMES:
        raise _refused(_without_scheme(uri))
    kind = scheme.partition("+")[0]
    if kind not in _SCHEMES:
        raise _refused(
            f"an address with {', '.join(_SCHEMES[:3])} or a database's name in front{did_you_mean(kind, _SCHEMES)}"
        )
    if kind in ("http", "https") and not _has_host(uri):
        raise _refused(f"{kind}://host:port, as http://localhost:5000")
    if kind == "sqlite" and (not rest.startswith("/") or sqlite_path(uri).name in ("", ":memory:")):
        raise _refused(f"sqlite:/// and the path of a file, as {sqlite_uri(folder.absolute() / 'mlflow.db')}")
    if kind in _DATABASES:
        _check_driver(uri)
    return uri


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite file."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def sqlite_path(uri: str) -> Path:
    """The file of a SQLite address."""
    return Path(make_url(uri).database or "")


def _refused(allowed: str) -> StoreError:
    shown = re.sub(r"(\w:)[^\s/@]+@", r"\1***@", os.environ[VARIABLE].partition("?")[0])
    return StoreError(f"{VARIABLE}={shown}: must be {allowed}")


def _without_scheme(uri: str) -> str:
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        return f"http://{uri}"
    if re.match(r"https?:", uri):
        return "http://host:port, as http://localhost:5000"
    return f"a server, http://host:port, or a file, {sqlite_uri(Path(uri).absolute())}"


def _has_host(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _check_driver(uri: str) -> None:
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        package = _PACKAGES.get(error.name or "", error.name)
        raise _refused(f"a database whose driver is installed: pip install {package}") from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise _refused(f"an address of a database ({error})") from error
