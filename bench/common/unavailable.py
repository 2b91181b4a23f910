"""Why something is not measured."""


class Unavailable(Exception):
    """The program is not here, or has no such thing as this needs; says what to do."""
