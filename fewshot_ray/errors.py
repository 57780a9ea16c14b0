"""What the user can put right."""


class UserError(Exception):
    """One clear line: what, where, what would be right.

    The command line prints the line and exits with code 2; a library user catches it.
    """
