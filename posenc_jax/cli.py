"""The door of every entry point: flags in, one line and exit code 2 for anything wrong with them."""

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

from posenc_jax.results.schema import WRONG_INPUT


def run_main(main: Callable[[], int | None]) -> None:
    """Runs `main()` after the flags are parsed; exits with what it returns.

    Wrong flags, and any ValueError from the work itself, become one line on stderr and exit code 2.
    """
    _follow_parent()
    app.run(lambda _: sys.exit(_guarded(main)), flags_parser=_parse)


def _follow_parent() -> None:
    """On Linux, asks for SIGTERM when the study that started this process is killed outright."""
    parent = os.environ.get("POSENC_JAX_STUDY")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit("the study that started this run is gone")


def _parse(argv: list[str]) -> list[str]:
    def parsed() -> list[str]:
        rest = flags.FLAGS(argv)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the libraries narrate every save otherwise
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}; settings are given as --name=value")
        return rest

    return _guarded(parsed)


def _guarded(work: Callable):
    try:
        return work()
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        if not (
            isinstance(error, flags.Error | ValueError) or _of_a_path(error) or _from_config(error)
        ):
            raise
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        name = str(said).strip("\"'")
        if name.isidentifier():  # all that ml_collections says of a setting unlike any other
            said = f"{name} is not a setting of the configuration"
        print(f"{sys.argv[0]}: {_line(str(said))}", file=sys.stderr)
        sys.exit(WRONG_INPUT)


def _line(said: str) -> str:
    """One line; of a config file that refuses its argument, ml_collections prints the whole traceback."""
    before, traceback, after = said.partition("Error whilst parsing config file:")
    if traceback:
        said = before + after.strip().splitlines()[-1].removeprefix("ValueError: ")
    return " ".join(said.split())


def _of_a_path(error: BaseException) -> bool:
    """Whether the error says that a path given by the user is not there, or that nothing can be written there."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or isinstance(
        error,
        FileNotFoundError
        | NotADirectoryError
        | FileExistsError
        | IsADirectoryError
        | PermissionError,
    )


def _from_config(error: BaseException) -> bool:
    """Whether the error rose while a config file or an override of it was read."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("ml_collections"):
            return True
        trace = trace.tb_next
    return False
