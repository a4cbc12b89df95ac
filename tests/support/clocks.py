"""A clock that a test advances."""


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now
