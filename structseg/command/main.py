"""The command `structseg`: a table of subcommands, so that only the module of the one that runs is imported."""

from __future__ import annotations

import os
import select
import sys
from importlib import import_module
from pathlib import Path

import structseg
from structseg.command.processes import FolderInUseError
from structseg.messages import UsageError, fail, interrupted
from structseg.options.subcommands import LIGHTNING, SUBCOMMANDS, check_subcommand, overview


def main() -> None:
    """Entry point of `structseg`. Errors are one line.

    The exit code is 1 on an error, 2 where the command is wrong, 130 on Ctrl-C, and 141, without a message, where the
    reader of its output stops reading, as `head` does.
    """
    if str(Path.cwd()) not in sys.path:  # holds the user's own classes; last, so that it hides no package
        sys.path.append(str(Path.cwd()))
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except UsageError as error:
        fail(_one_line(error), 2)
    except Exception as error:  # the only place where errors become one line
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for output that is flushed at exit
            raise SystemExit(141) from None
        if interrupted(error):
            fail("interrupted", 130)
        if os.environ.get("STRUCTSEG_TRACEBACK"):
            raise
        fail(_one_line(error))


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if args[0] in ("--version", "-V", "version"):
        print(f"structseg {structseg.__version__}")
        return
    check_subcommand(args[0])
    module, words = SUBCOMMANDS[args[0]].module, args[1:]
    in_pipeline = args[0] == "predict" and any(w.startswith("--data.predict_split") for w in words)
    if args[0] in LIGHTNING or in_pipeline:
        from structseg.options.arguments import as_options, check_data  # slow to load: they read YAML and source files
        from structseg.options.help_pages import help_page

        module = LIGHTNING["fit"].module
        if page := help_page(args[0], words):
            print(page)
            return
        words = as_options(args)
        check_data(words)
    import_module(module).main(words)


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _one_line(error: Exception) -> str:
    """The message; for an error in a loader's worker process, the original message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):
        return lines[-1].partition(": ")[2] or lines[-1]
    if "Does not validate against any of the Union" in lines[0]:  # raised while jsonargparse made an object
        from structseg.options.parser import shorten

        return shorten(str(error))
    if lines[0].startswith("Error(s) in loading state_dict"):
        reason = " ".join(" ".join(lines[1:4]).split())[:300]
        return f"the checkpoint does not fit the model ({reason}); use the settings it was trained with"
    plain = isinstance(error, ValueError | TypeError | OSError | FolderInUseError)
    return (
        " ".join(lines)[:1000] if plain else f"{type(error).__name__}: {lines[0]} (STRUCTSEG_TRACEBACK=1 shows where)"
    )
