"""Entry points: flag parsing, and errors of the user as one line and exit code 2."""

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from posenc_jax.results.schema import WRONG_INPUT


def run_main(main: Callable[[], int | None]) -> None:
    """Runs `main()` after the flags are parsed; exits with what it returns.

    Wrong flags, and any ValueError of `main`, become one line on stderr and exit code 2.
    """
    _follow_parent()
    app.run(lambda _: sys.exit(_guarded(main)), flags_parser=_parse)


def whole_numbers(flag: str, values: Sequence[str]) -> tuple[int, ...]:
    """Returns the values of a list flag as numbers; ValueError unless they are whole and not negative."""
    if not values or not all(value.isdigit() for value in values):
        raise ValueError(f"--{flag} must be whole numbers, not {','.join(values)!r}")
    return tuple(map(int, values))


def _follow_parent() -> None:
    """On Linux, requests SIGTERM for this process when the study that started it is killed."""
    parent = os.environ.get("POSENC_JAX_STUDY")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit("the study that started this run is gone")


def _parse(argv: list[str]) -> list[str]:
    def parsed() -> list[str]:
        rest = flags.FLAGS(argv)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries log every save
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}; settings are given as --name=value")
        return rest

    return _guarded(parsed)


def _guarded(work: Callable):
    try:
        return work()
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        if not (
            isinstance(error, flags.Error | ValueError) or _of_path(error) or _of_config(error)
        ):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        name = str(message).strip("\"'")
        if name.isidentifier():  # the whole message of ml_collections for an unknown setting
            message = f"{name} is not a setting of the configuration"
        print(f"{sys.argv[0]}: {_one_line(str(message))}", file=sys.stderr)
        sys.exit(WRONG_INPUT)


def _one_line(message: str) -> str:
    """Returns the message on one line, without the traceback of a config file that ml_collections adds."""
    before, traceback, after = message.partition("Error whilst parsing config file:")
    if traceback:
        message = before + after.strip().splitlines()[-1].removeprefix("ValueError: ")
    return " ".join(message.split())


def _of_path(error: BaseException) -> bool:
    """Whether a path of the user does not exist, is of the wrong kind, or cannot be written."""
    kinds = (
        FileNotFoundError,
        NotADirectoryError,
        FileExistsError,
        IsADirectoryError,
        PermissionError,
    )
    full_or_read_only = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return isinstance(error, kinds) or getattr(error, "errno", None) in full_or_read_only


def _of_config(error: BaseException) -> bool:
    """Whether the error was raised while ml_collections read a config file or an override."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("ml_collections"):
            return True
        trace = trace.tb_next
    return False
