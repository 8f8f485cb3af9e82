"""Errors whose message is meant for the user: what is wrong, where, and what to do about it.

Command-line doors print the message on one line and exit with code 2; anything else that is
raised is a bug of ours and keeps its traceback.
"""


class AleatorError(ValueError):
    """Bad input or configuration; the message names the culprit and the remedy."""


class CheckpointError(AleatorError):
    """A checkpoint is missing, damaged, of another application or of a newer version."""


class Unsupported(AleatorError, TypeError, AttributeError):
    """A verb that a family does not have; the message says what to use instead."""
