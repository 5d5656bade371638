"""The one exception that library code raises on purpose."""

OK, FAILURE, USAGE, ENVIRONMENT, MEMORY, DIVERGED, DAMAGED = 0, 1, 2, 3, 4, 5, 6
REQUEUE, HUNG_UP, INTERRUPTED, TERMINATED = 75, 129, 130, 143  # stopped by a signal, saved and resumable
STOPPED = (REQUEUE, HUNG_UP, INTERRUPTED, TERMINATED)


class FourdfyError(Exception):
    """A failure a user can mend: one line of message, a hint that is a command to type, and an exit code."""

    def __init__(self, message: str, hint: str = "", code: int = FAILURE):
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code
