"""The two errors that a user meets: one caused by what was asked, one by the bytes that were sent."""

from http import HTTPStatus
from pathlib import Path


def place_of(error: BaseException) -> str:
    """Return ``file.py:line`` where an error was raised: what it says can quote patient data, where it is cannot."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "unknown"


class MedadError(Exception):
    """A failure the user can act on: ``message`` says what is wrong, ``hint`` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}. {hint}".strip() if hint else message)
        self.message = message
        self.hint = hint


class InputError(MedadError):
    """The only error that a user's bytes can cause.

    ``code`` is the HTTP status it is answered with: 400 not decodable, 413 too large, 415 encoding not
    supported, 422 decodable but not usable by this model. Texts never quote values of the input.
    """

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = HTTPStatus(code)

    def to_json(self) -> dict[str, object]:
        """Return the body of the error answer."""
        return {"error": {"code": int(self.code), "message": self.message, "hint": self.hint}}


def one_line(text: str, longest: int = 400) -> str:
    """Return text from an unknown file as a terminal may show it: no control characters, not endless."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:longest])
    return shown + ("..." if len(text) > longest else "")
