"""Exceptions: errors that the user can correct, and the planned end of a trial."""

import re


class UserError(Exception):
    """An error that the user can correct, with a clear line each: what, where, what would be right.

    The command line prints the lines and exits with code 2; library users catch it.
    """

    @property
    def lines(self) -> tuple[str, ...]:
        """The messages: several where a file has several errors."""
        return tuple(str(line) for line in self.args)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class FullError(UserError):
    """A disk, store or quota is full: nothing can be written until there is space."""


class UnreachableError(UserError):
    """A place didn't answer in time."""


class SavedAndEndedError(Exception):
    """A trial was told to end: its state is saved, and it can be continued, elsewhere or later."""

    def __init__(self, reason: str, step: int | None = None) -> None:
        super().__init__(reason if step is None else f"{reason}; saved at step {step}")
        self.reason = reason

    def __reduce__(self) -> tuple[type[Exception], tuple[str]]:
        return type(self), (str(self),)


def said_of(field: str, error: UserError) -> UserError:
    """The same error for another field or argument, which named the place, in place of `source.model` or `source.gan`."""
    return UserError(*(f"{field}: {re.sub(r'^source[.](model|gan): ', '', line)}" for line in error.lines))
