"""Texts without passwords, tokens and keys, and the errors of libraries in one such line."""

import os
import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from paramtransfer.errors import StoreError

_LONG_SECRET = 8
_SECRET = re.compile(
    r"""(\b[\w-]*(?:passwor[dt]|passwd|secret|token|api_?key|access_?key|credential)[\w-]*)  # a name that says it
    (=(?=[^\s=])["']?|["']?\s*[=:]\s*["']|["']?:\s*(?=\S*\d))                               # is given
    [^\s"',;)\]}]{4,}                                                                      # a value
    """,
    re.IGNORECASE | re.VERBOSE,
)


def without_secrets(text: str) -> str:
    """The text, with *** for every password and token that the environment holds for the store."""
    parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    queried = [value for key, value in parse_qsl(parts.query) if "pass" in key.lower() or "token" in key.lower()]
    named = [os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("PASSWORD", "TOKEN")]
    for secret in filter(None, [parts.password or parts.username, *queried, *named]):
        for spelling in (secret, unquote(secret), quote(secret, safe="")):
            text = occurrences(spelling).sub("***", text)
    return text


def masked(text: str) -> str:
    """The same, and for what by its looks is a password, a token or a key."""
    text = re.sub(r"(\w://[^\s/:@'\"]*:)[^\s/@'\"]+@", r"\1***@", without_secrets(text))
    return _SECRET.sub(r"\1\2***", text)


def public(uri: str) -> str:
    """The URI without password and query."""
    return without_secrets(uri.partition("?")[0])


def reason_of(error: BaseException) -> str:
    """An error in one line without secrets."""
    if isinstance(error, StoreError):
        return error.reason
    text = str(error).strip()
    # What the layers of libraries have wrapped.
    inner = re.search(r"Max retries exceeded .*?(\[Errno -?\d+\] [\w ]+|\w+Error\(\d+, '[\w ]+'\))", text)
    inner = inner or re.search(r"(\(sqlite3\.\w+\) .+)", text)
    return without_secrets(inner[1] if inner else (text.splitlines() or [type(error).__name__])[0])


def occurrences(secret: str) -> "re.Pattern[str]":
    """Where a secret stands in a text; a short one's letters within words are none."""
    pattern = re.escape(secret)
    return re.compile(pattern if len(secret) >= _LONG_SECRET else rf"(?<!\w){pattern}(?!\w)")
