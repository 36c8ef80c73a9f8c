"""Standard output and errors that never fail a job: what a terminal lacks is spelled, a lost one passed over."""

import codecs
import errno
import io
import os
import sys
from typing import TextIO

_ERRORS = "paramtransfer.spell"
_SPELLED = dict(zip("×−–·─│₀₁₂", "x--.-|012", strict=True)) | {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "σ": "sigma",
    "ρ": "rho",
    "Γ": "Gamma",
    "ε": "epsilon",
    "±": "+-",
    "‖": "||",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "…": "...",
    "²": "^2",
    "⁴": "^4",
}
_NAMES = ("stdout", "stderr")


class _Output(io.FileIO):
    """A file that is written as long as that can be done."""

    failure: OSError | None = None

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            return memoryview(data).nbytes


def protect_output() -> None:
    """From now on, what this process prints is no reason for it to fail; what has replaced its streams stays."""
    for name in _NAMES:
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by whoever has started this process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, protected(stream))


def protected(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same file, as a stream whose writing never fails."""
    codecs.register_error(_ERRORS, _spell)
    stream.flush()
    buffer = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))  # type: ignore[type-var]
    return io.TextIOWrapper(buffer, stream.encoding, _ERRORS, line_buffering=stream.line_buffering)


def lost_output() -> str:
    """Why something that was printed is lost; nothing where a reader has just had enough."""
    for name in _NAMES:
        stream = getattr(sys, name)
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, _Output):
            stream.flush()
            if raw.failure is not None and raw.failure.errno != errno.EPIPE:
                return f"{name} could not be written ({raw.failure.strerror})"
    return ""


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _SPELLED.get(character, "?")
