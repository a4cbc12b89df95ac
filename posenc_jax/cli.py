"""Entry points: flag parsing, signals, lost output, and errors of the user as one line and exit
code 2.
"""

import contextlib
import ctypes
import errno
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TextIO

from absl import app, flags, logging

from posenc_jax.results.schema import DONE, INTERRUPTED, STOPPED, UNWRITABLE, WRONG_INPUT
from posenc_jax.training.interrupts import RaiseOnce, SignalNotice

PLUGINS = "posenc_jax.encodings"  # entry points of installed packages that register encodings
_IMPORT = flags.DEFINE_list(
    "import", [], "Modules of yours that register encodings, e.g. my.encodings"
)


def run_main(main: Callable[[], int | None]) -> None:
    """Runs `main()` after the flags are parsed; exits with what it returns.

    Wrong flags, and any ValueError of `main`, become one line on stderr and exit code 2. SIGTERM
    and SIGHUP end it with STOPPED, Ctrl-C with INTERRUPTED, each with a line. Output that cannot be
    written is dropped; if it was on stdout and `main` succeeded, the exit code is UNWRITABLE.
    """
    _open_standard_streams()
    _follow_parent()
    stop = RaiseOnce(_stopped)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, stop)
    app.run(lambda _: sys.exit(_to_the_end(main)), flags_parser=_parse)


def _to_the_end(main: Callable[[], int | None]) -> int:
    """Returns the exit code of `main`; ends the process at once after a signal."""
    try:
        with SignalNotice("ending"):
            code = _guarded(main) or DONE
    except (KeyboardInterrupt, _Stopped) as end:
        print(f"{end}; run the same command to go on", file=sys.stderr)
        sys.stdout.flush()
        # Ordinary cleanup may crash while threads of a compiler or of a save are at work.
        os._exit(STOPPED if isinstance(end, _Stopped) else INTERRUPTED)
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost is None or lost.errno == errno.EPIPE:  # the reader, such as head, has read enough
        return code
    print(f"stdout could not be written ({lost.strerror}): lines are missing", file=sys.stderr)
    return code or UNWRITABLE


class _Stopped(SystemExit):
    """A signal other than Ctrl-C asked the process to end."""


def _stopped(name: str) -> BaseException:
    return KeyboardInterrupt("stopped") if name == "SIGINT" else _Stopped(f"stopped by {name}")


class _BestEffort:
    """A text stream that drops what it cannot write; `lost` is the first error, or None."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Writes the text if the stream takes it."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if it takes its buffer."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self):
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def _open_standard_streams() -> None:
    """Makes a closed, full or broken stdout or stderr harmless.

    A file that is opened while number 2 is free becomes stderr, and messages of libraries go into
    it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or open(number, "w", closefd=False)  # noqa: SIM115
        setattr(sys, name, _BestEffort(stream))


def whole_numbers(flag: str, values: Sequence[str]) -> tuple[int, ...]:
    """Returns the values of a list flag as numbers; ValueError unless they are whole, not negative
    and distinct.

    Each has one spelling, since some name a folder: neither 01 nor digits of other scripts.
    """
    plain = all(re.fullmatch("0|[1-9][0-9]{0,17}", value) for value in values)
    if not values or not plain or len(set(values)) < len(values):
        raise ValueError(f"--{flag} must be whole numbers, each once, not {','.join(values)!r}")
    return tuple(map(int, values))


def fault_of_file(error: BaseException, path: str) -> str:
    """Returns what is wrong in a Python file of the user, and its last line that was reached."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{where}{kind}{error}"


def _follow_parent() -> None:
    """On Linux, requests SIGTERM for this process when the study that started it is killed."""
    parent = os.environ.get("POSENC_JAX_STUDY")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit("the study that started this run is gone")


def _parse(argv: list[str]) -> list[str]:
    def parsed() -> list[str]:
        if {"--help", "-help", "-h"} & set(argv):
            _print_help()
        rest = flags.FLAGS(argv)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries log every save
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}; settings are given as --name=value")
        _load_plugins(_IMPORT.value)
        return rest

    return _guarded(parsed)


def _print_help() -> None:
    """Prints the flags of the script, and the settings of a run; ends the process."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["import"])
    app.usage(shorthelp=True, writeto_stdout=True)
    if "config" in flags.FLAGS:
        from posenc_jax.training.setting_help import settings_help

        print(f"\n{settings_help()}")
    sys.stdout.flush()
    sys.exit(DONE)


def _load_plugins(modules: Sequence[str]) -> None:
    """Imports the modules of --import, and those that installed packages name as entry points."""
    for entry in metadata.entry_points(group=PLUGINS):
        entry.load()
    if modules:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ValueError(f"--import={name}: {type(error).__name__}: {error}") from error


def _guarded(work: Callable):
    try:
        return work()
    except Exception as error:
        if not (
            isinstance(error, flags.Error | ValueError)
            or _of_path(error)
            or _of_config(error)
            or _of_backend(error)
        ):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        if _of_backend(error) and isinstance(error, AssertionError):
            message = (
                f"no device for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}; set it to "
                "cpu, or unset it"
            )
        elif isinstance(error, ArithmeticError | ImportError | LookupError | NameError) and not (
            isinstance(error, KeyError)
        ):
            frames = traceback.extract_tb(error.__traceback__)
            given = [f.filename for f in frames if any(f.filename in arg for arg in sys.argv[1:])]
            message = f"{given[-1]}: {fault_of_file(error, given[-1])}" if given else message
        name = str(message).strip("\"'")
        if name.isidentifier():  # the whole message of ml_collections for an unknown setting
            message = f"{name} is not a setting of the configuration"
        print(f"{sys.argv[0]}: {_one_line(str(message))}", file=sys.stderr)
        sys.exit(WRONG_INPUT)


# What Python says of a text that is no number, and the same in words.
_NO_NUMBER = {
    r"invalid literal for int\(\) with base 10: (\S+)": r"\1 is no whole number",
    r"could not convert string to float: (\S+)": r"\1 is no number",
}


def _one_line(message: str) -> str:
    """Returns the message on one line, without ml_collections' traceback of a config file."""
    for said, words in _NO_NUMBER.items():
        message = re.sub(said, words, message)
    before, traceback, after = message.partition("Error whilst parsing config file:")
    if traceback:
        message = before + after.strip().splitlines()[-1].removeprefix("ValueError: ")
    return " ".join(message.split())


def _of_path(error: BaseException) -> bool:
    """Whether a path of the user is absent, of the wrong kind, or cannot be read or written."""
    kinds = (
        FileNotFoundError,
        NotADirectoryError,
        FileExistsError,
        IsADirectoryError,
        PermissionError,
    )
    others = (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EIO, errno.ENXIO, errno.ENODEV),  # what cannot be read, such as a device
    )
    return isinstance(error, kinds) or getattr(error, "errno", None) in others


def _of_config(error: BaseException) -> bool:
    """Whether the error was raised while ml_collections read a config file or an override."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("ml_collections"):
            return True
        trace = trace.tb_next
    return False


def _of_backend(error: BaseException) -> bool:
    """Whether JAX cannot use the devices that JAX_PLATFORMS or a plug-in names.

    Without an NVIDIA driver JAX has an assertion for JAX_PLATFORMS=cuda, and no words.
    """
    if isinstance(error, AssertionError):
        frames = traceback.extract_tb(error.__traceback__)
        return bool(frames) and frames[-1].filename.endswith("xla_bridge.py")
    return isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)
