"""The errors a stage can end with, and their exit codes; and what their messages may suggest."""

import difflib
from collections.abc import Iterable


class PrefdagError(Exception):
    """A failure that ends the process with `exit_code` and no traceback. Its message is one line that says what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line: characters that cannot be printed, in a key or a file name, are escaped."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class ParamsError(PrefdagError):
    """A value in params.yaml or a profile is wrong. The message starts with the file and the dotted key."""

    exit_code = 2


class DataError(PrefdagError):
    """Input data is wrong. The message starts with the file and, if known, the row and the column."""

    exit_code = 2


class SourceError(PrefdagError):
    """A source could not be fetched, or does not match its pin."""

    exit_code = 2


class NumericError(PrefdagError):
    """A loss, gradient or reward is not finite, or the policy does not start at its reference."""

    exit_code = 3


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """A close match among `known`, as a question; else `otherwise`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise
