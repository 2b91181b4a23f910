"""The error for programs and features that are missing."""


class Unavailable(Exception):
    """The program is not installed or lacks a needed feature; the message says what to do."""
