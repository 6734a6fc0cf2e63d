"""How an episode ended."""

from enum import StrEnum


class Outcome(StrEnum):
    """An infrastructure error is never counted as a policy failure."""

    SUCCESS = 'success'
    FAILURE = 'failure'
    ERROR = 'error'
    INTERRUPTED = 'interrupted'
