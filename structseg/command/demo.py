"""`structseg demo`: trains and tests the FASSEG U-Net on drawn faces and lists the pictures that it makes."""

from __future__ import annotations

import time

from structseg.options.config_files import find_config
from structseg.options.plain_parser import PlainParser

CONFIG = "fasseg_unet/synthetic"


def make_parser() -> PlainParser:
    """The parser of `structseg demo`, which has no options."""
    return PlainParser(
        "demo", ("",), description=f"Trains and tests a small U-Net on drawn faces ({CONFIG}), in minutes on a CPU."
    )


def main(args: list[str]) -> None:
    """Fits, tests the best checkpoint and lists the pictures."""
    make_parser().parse_args(args)
    from structseg.command.batch_sheet import save_batch  # takes seconds to load
    from structseg.command.configs import parse_data
    from structseg.command.lightning import ended_in_one_line, run

    start = time.monotonic()
    with ended_in_one_line():
        fitted = run(["fit", "--config", CONFIG])
        pictures = fitted.folder.path / "pictures"
        best = str(fitted.folder.checkpoints / "best.ckpt")
        run(["test", "--config", str(fitted.folder.config), "--ckpt_path", best])
    save_batch(parse_data(["--config", str(find_config(CONFIG))], "demo"), pictures / "training_batch.png")
    print(f"trained and tested in {(time.monotonic() - start) / 60:.1f} minutes; look at:")
    for picture in sorted(pictures.glob("*.png")):
        print(f"  {picture}")
