"""The tracking store's address as people write it."""

from pathlib import Path

import pytest

from paramtransfer.errors import StoreError
from paramtransfer.tracking.address import VARIABLE, sqlite_path, sqlite_uri, store_uri
from paramtransfer.tracking.masking import without_secrets
from paramtransfer.tracking.store import Store

REFUSED = {
    "localhost:5000": "must be http://localhost:5000",
    "tracking.example.org:80/mlflow": "must be http://tracking.example.org:80/mlflow",
    "http:/localhost:5000": "must be http://host:port, as http://localhost:5000",
    "http://": "must be http://host:port",
    "http://localhost:port": "must be http://host:port",
    "htpp://localhost:5000": "must be an address with http, https, sqlite or a database's name in front; did you",
    "file:///tmp/x": "must be an address with http, https, sqlite",
    "/tmp/store.db": "must be a server, http://host:port, or a file, sqlite:////tmp/store.db",
    "sqlite://": "must be sqlite:/// and the path of a file, as sqlite:///",
    "sqlite:///:memory:": "must be sqlite:/// and the path of a file",
    "mysql+nodriver://u:p@h/db": "must be an address of a database",
}


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_no_address_is_told_what_is_meant(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, before anything is reached or made; a password in it is hidden where it stands."""
    monkeypatch.setenv(VARIABLE, f" {address} ")
    with pytest.raises(StoreError) as refused:
        store_uri(tmp_path)
    assert REFUSED[address] in str(refused.value)
    assert str(refused.value).startswith(f"{VARIABLE}= {address.replace(':p@', ':***@')} : must be ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dialect", "package"), [("mysql", "mysqlclient"), ("mssql", "pyodbc")])
def test_drivers_that_are_missing_are_named(
    dialect: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the package that has them; a short password is hidden where it stands and nowhere else."""
    monkeypatch.setenv(VARIABLE, f"{dialect}://u:p@h/db")
    with pytest.raises(StoreError, match=rf"{dialect}://u:\*\*\*@h/db: must be .* pip install {package}"):
        store_uri(tmp_path)


def test_secrets_are_hidden_where_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one as a word of its own, a long one wherever it occurs."""
    monkeypatch.setenv(VARIABLE, "mysql+pymysql://u:p@h/db")
    assert without_secrets("mysql+pymysql://u:p@h/db: pip, 'p'") == "mysql+pymysql://u:***@h/db: pip, '***'"
    monkeypatch.setenv(VARIABLE, "mysql://u:correcthorse@h/db")
    assert without_secrets("xcorrecthorsex") == "x***x"


@pytest.mark.parametrize("name", ["a b", "a%20b", "100%", "a#b", "größe", "a+b"])
def test_files_lie_where_their_address_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default store in a folder of any name, and the same by its address, spaces around it or not."""
    monkeypatch.delenv(VARIABLE, raising=False)
    folder = tmp_path / name
    uri = store_uri(folder)
    assert sqlite_path(uri) == folder / "mlflow.db"
    if name == "a%20b":
        Store(folder)
        assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
        monkeypatch.setenv(VARIABLE, f" '{sqlite_uri(folder / 'mlflow.db')}?timeout=5'\n")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
        assert Store(tmp_path / "other").experiment_id == "1"
