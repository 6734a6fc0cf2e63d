"""What Ctrl-C becomes once everything has been ended in order."""


class Interrupted(Exception):  # noqa: N818 - not an error: a person's wish
    """A person stopped the work; what was finished is kept, and the same call goes on."""
