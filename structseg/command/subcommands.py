"""The subcommands of `structseg`, with a line on each."""

from __future__ import annotations

SUBCOMMANDS = {
    "fit": ("structseg.command.lightning", "train, keep the best and the last checkpoint"),
    "validate": ("structseg.command.lightning", "score the held-out images"),
    "test": ("structseg.command.lightning", "score the test images; a checkpoint is enough"),
    "predict": ("structseg.command.lightning", "label an image, a folder, a video or a camera; a checkpoint is enough"),
}
TOOLS = {
    "demo": ("structseg.command.demo", "train and test on drawn faces, in some minutes on a CPU"),
    "pipeline": ("structseg.pipelines.command", "fits that build on each other, finished ones skipped"),
    "rounds": ("structseg.pipelines.rounds", "what a pipeline's rounds measured, and pictures of what they made"),
    "check": ("structseg.audit.command", "every broken file of a data set, at once"),
    "submit": ("structseg.cluster.submit", "write a SLURM job for a configuration, and submit it"),
    "configs": ("structseg.command.config_files", "list the configurations that --config finds by name"),
    "show": ("structseg.command.show", "draw an augmented batch with its labels"),
    "results": ("structseg.results.command", "the results table, and the runs behind it"),
}
