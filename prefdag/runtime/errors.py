"""What can go wrong, and the exit code each kind of failure ends a stage with."""


class PrefdagError(Exception):
    """A failure whose message is one line that says what to do. Ends the process with `exit_code`, without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        """One line, whatever a key or a source is called: what cannot be printed is escaped."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class ParamsError(PrefdagError):
    """A value in params.yaml or a profile is wrong. The message starts with the file and the dotted key."""

    exit_code = 2


class DataError(PrefdagError):
    """Input data is wrong. The message starts with the file and, where there is one, the row and the column."""

    exit_code = 2


class SourceError(PrefdagError):
    """A source could not be fetched, or what came is not what is pinned."""

    exit_code = 2


class NumericError(PrefdagError):
    """A loss, gradient or reward is not finite, or the policy does not start at its reference."""

    exit_code = 3
