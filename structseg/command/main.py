"""The command `structseg`."""

from __future__ import annotations

from structseg import torchvision_fallback  # noqa: F401  # isort: skip  # before anything that imports torchvision

import os
import sys
from importlib import import_module
from importlib.metadata import version

from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from structseg.command.lightning import _GOES_ON, Finished, run
from structseg.command.parser import shorten
from structseg.command.subcommands import SUBCOMMANDS, TOOLS
from structseg.messages import fail


def main() -> None:
    """Entry point: a tool of the suite, or one of Lightning's subcommands. Errors are one line, exit code 1."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print("structseg SUBCOMMAND ...; --help after a subcommand lists its options\n")
        print("\n".join(f"  {name:10}{text}" for name, (_, text) in {**SUBCOMMANDS, **TOOLS}.items()))
        return
    if args[0] == "--version":
        print(f"structseg {version('structseg')}")
        return
    try:
        if args[0] in TOOLS:
            import_module(TOOLS[args[0]][0]).main(args[1:])
        else:
            run(args)
    except Finished as done:
        rank_zero_only(print)(done)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning shuts down by exit
            fail(f"interrupted; {_GOES_ON}", 130)
        if isinstance(stop, SIGTERMException):
            sys.stderr.write(f"structseg: error: terminated; {_GOES_ON}\n")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(143)  # what libraries do at exit could outlast the grace that is left
        raise
    except Exception as error:  # the one place where every error becomes a line
        if os.environ.get("STRUCTSEG_TRACEBACK"):
            raise
        fail(_one_line(error))


def _one_line(error: Exception) -> str:
    """The message; for an error from a loader's worker, the message that it was raised with there."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):
        return lines[-1].partition(": ")[2] or lines[-1]
    if "Does not validate against any of the Union" in lines[0]:  # raised while jsonargparse made an object
        return shorten(str(error))
    if lines[0].startswith("Error(s) in loading state_dict"):
        reason = " ".join(" ".join(lines[1:4]).split())[:300]
        return f"the checkpoint does not fit the model ({reason}); use the settings it was trained with"
    plain = isinstance(error, ValueError | TypeError | OSError)
    return (
        " ".join(lines)[:1000] if plain else f"{type(error).__name__}: {lines[0]} (STRUCTSEG_TRACEBACK=1 shows where)"
    )
