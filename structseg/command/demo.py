"""`structseg demo`: train and test the FASSEG U-Net on faces that are drawn as it goes; then say what to look at."""

from __future__ import annotations

import time
from pathlib import Path

from structseg.command import show
from structseg.command.lightning import ended_in_one_line, run
from structseg.messages import fail

CONFIG = "fasseg_unet/synthetic"


def main(args: list[str]) -> None:
    """Fit, test with the best checkpoint, and the list of pictures."""
    if args:
        fail(f"demo: it takes no arguments, got {args[0]}", 2)
    start = time.monotonic()
    with ended_in_one_line():
        fitted = run(["fit", "--config", CONFIG])
        folder = fitted.folder.path
        best = str(fitted.folder.checkpoints / "best.ckpt")
        run(["test", "--config", str(fitted.folder.config), "--ckpt_path", best])
    show.main([CONFIG, "--out", str(folder / "pictures" / "training_batch.png")])
    print(f"trained and tested in {(time.monotonic() - start) / 60:.1f} minutes; look at:")
    for picture in sorted((Path(folder) / "pictures").glob("*.png")):
        print(f"  {picture}")
