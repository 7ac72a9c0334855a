"""Lays every damaged input before the suite and counts: `python -m tests.fuzz.survey` prints an entry of reliability.json."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path

from tests.fuzz.harm import Damage, fault_of

KINDS = ("images", "data_files", "artefacts", "checkpoints", "archives", "yaml_and_cli")


def cases(kinds: tuple[str, ...] = KINDS) -> dict[str, list[Damage]]:
    """Every damaged input, by kind."""
    return {kind: import_module(f"tests.fuzz.test_{kind}").CASES for kind in kinds}


def survey(kinds: tuple[str, ...] = KINDS, verbose: bool = False) -> dict[str, object]:
    """Runs them all; faults are printed."""
    injected: Counter[str] = Counter()
    faults: list[str] = []
    for kind, found in cases(kinds).items():
        for case in found:
            with tempfile.TemporaryDirectory() as folder:
                fault = fault_of(case, Path(folder))
            injected[kind] += 1
            if fault:
                faults.append(f"{case}: {fault}")
                if verbose:
                    print(faults[-1], file=sys.stderr)
    total = sum(injected.values())
    each = ", ".join(f"{count} {kind}" for kind, count in injected.items())
    how = f"damaged inputs ({each}): each one line, or a whole result, in 10 s and 1 GiB; nothing of theirs run"
    return {"injected": total, "survived": total - len(faults), "lost": 0, "how": how}


if __name__ == "__main__":
    print(json.dumps(survey(tuple(sys.argv[1:]) or KINDS, verbose=True), indent=1))
