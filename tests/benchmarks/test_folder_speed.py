"""Own folders of images and masks beside a plain loop that decodes, resizes and stacks the same files."""

import numpy as np
import pytest
import torch
from PIL import Image

from structseg.datamodules.folder.datamodule import FolderDataModule
from tests.benchmarks.measure import cpu_seconds

_COUNT, _ROUNDS, _SIZE = 60, 9, (256, 256)
_FILE = "images: images\nmasks: masks\nclasses: [{}]\n"


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("form", ["index", "palette", "colours"])
def test_reading_beside_plain_decoding(form, shared_data, tmp_path, benchmark, capsys):
    """Every sample once, none from memory."""
    from structseg.datamodules.label_spaces import CELEBAMASK_HQ

    home = shared_data / "celebamask_hq_mini"
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    entries = [
        f"{{name: {n}, rgb: [{list(c)}]}}" for n, c in zip(CELEBAMASK_HQ.classes, CELEBAMASK_HQ.palette, strict=True)
    ]
    (tmp_path / "dataset.yaml").write_text(
        _FILE.format(", ".join(CELEBAMASK_HQ.classes if form == "index" else entries))
    )
    for photograph in sorted((home / "images").iterdir())[:_COUNT]:
        (tmp_path / "images" / photograph.name).symlink_to(photograph)
        mask = Image.open(home / "masks" / f"{photograph.stem}.png")
        mask = (
            mask
            if form == "palette"
            else mask.convert("RGB")
            if form == "colours"
            else Image.fromarray(np.asarray(mask))
        )
        mask.save(tmp_path / "masks" / f"{photograph.stem}.png")
    data = FolderDataModule(tmp_path, size=_SIZE)
    pairs = data.folder.splits["train"]

    def ours():
        dataset = data.make_dataset("train")
        dataset.memory_left = 0
        for index in range(len(pairs)):
            dataset[index]

    def plain():
        for pair in pairs:
            with Image.open(pair.image) as image, Image.open(pair.mask) as mask:
                pixels = np.asarray(image.convert("RGB").resize(_SIZE, Image.Resampling.BILINEAR), np.float32)
                torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1) / np.float32(255)))
                torch.from_numpy(np.array(mask.resize(_SIZE, Image.Resampling.NEAREST), np.int64))

    turns = [[cpu_seconds(work, rounds=1) for work in (ours, plain)] for _ in range(_ROUNDS)]
    seconds = np.median(turns, axis=0)
    benchmark.pedantic(ours, rounds=1)
    report = {
        "images a CPU second": round(_COUNT / seconds[0]),
        "share of plain": round(float(seconds[1] / seconds[0]), 2),
    }
    benchmark.extra_info.update(report)
    with capsys.disabled():
        print(f"\n  folder, masks as {form}: {report}")
