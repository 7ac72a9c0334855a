"""Everything that `predict` writes, for a module whose predictions are known in every pixel."""

from __future__ import annotations

import csv
import os
import signal
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from structseg.datamodules.batch import Sample, collate
from structseg.datamodules.label_spaces import LabelSpace
from structseg.datamodules.predict.inputs import predict_inputs
from structseg.lightning_modules.callbacks.prediction_writer import PredictionWriter, output_stems
from tests.data.processes import run_ranks

SPACE = LabelSpace("halves", ("background", "right", "never"), ((9, 8, 7), (200, 100, 0), (1, 1, 1)))


class Halves(LightningModule):
    """Background in the left half of an image's columns, `right` in the rest; the middle column is on the right."""

    def predict_step(self, batch: Any, batch_idx: int) -> list[Tensor]:
        maps = []
        for image in batch["original"]:
            height, width = image.shape[1:]
            row = (torch.arange(width) >= width // 2).to(torch.uint8)
            maps.append(row.expand(height, width).clone())
        return maps


def predict(data: Dataset[Sample], out: Path, module: LightningModule | None = None) -> Any:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[PredictionWriter(out, SPACE)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    return trainer.predict(module or Halves(), DataLoader(data, batch_size=1, collate_fn=collate))


def save(file: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random colours of (width, height), written without loss."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return pixels


def summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (2, 1), (400, 300), (300, 401)])
def test_one_image_in_every_pixel(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    pixels = save(tmp_path / "in/sub/a.png", size)
    predict(predict_inputs(str(tmp_path / "in"), (16, 16), tmp_path / "out"), tmp_path / "out")
    index = Image.open(tmp_path / "out/sub/a.png")
    assert (index.mode, index.size) == ("P", size)
    half = width // 2
    expected = np.zeros((height, width), np.uint8)
    expected[:, half:] = 1
    assert np.array_equal(np.asarray(index), expected)
    assert index.getpalette("RGB") == [9, 8, 7, 200, 100, 0, 1, 1, 1] + [0] * 3 * 253
    drawn = np.asarray(Image.open(tmp_path / "out/sub/a_overlay.png")).astype(int)
    assert np.array_equal(drawn[:, :half], pixels[:, :half])
    # Half of the pixel and half of (200, 100, 0), to the nearest.
    assert np.array_equal(drawn[:, half:], (pixels[:, half:].astype(int) + (200, 100, 0) + 1) // 2)
    right = (width - half) * height
    share = f"{right / (width * height):.6f}"
    assert summary(tmp_path / "out") == [
        {
            "name": "sub/a.png", "width": str(width), "height": str(height),
            "background": f"{half / width:.6f}", "right": share, "never": "0.000000",
            "background_pixels": str(half * height), "right_pixels": str(right), "never_pixels": "0",
        }
    ]  # fmt: skip
    assert sorted(f.name for f in (tmp_path / "out").rglob("*") if f.is_file()) == [
        "a.png", "a_overlay.png", "summary.csv",
    ]  # fmt: skip


def test_the_index_is_stored_in_8_bits(tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", (7, 5))
    predict(predict_inputs(str(tmp_path / "in"), (16, 16), tmp_path / "out"), tmp_path / "out")
    header = (tmp_path / "out/a.png").read_bytes()[16:26]
    assert struct.unpack(">IIBB", header) == (7, 5, 8, 3)  # width, height, bit depth, palette


def test_the_upright_size_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    predict(predict_inputs(str(tmp_path / "a.jpg"), (16, 16), tmp_path / "out"), tmp_path / "out")
    assert Image.open(tmp_path / "out/a.png").size == (20, 30)
    assert [(row["width"], row["height"]) for row in summary(tmp_path / "out")] == [("20", "30")]


def test_rows_are_sorted_and_a_second_run_changes_nothing_else(tmp_path: Path) -> None:
    for name in ("z.png", "a.bmp", "sub/m.tif"):
        save(tmp_path / "in" / name, (4, 4))
    out = tmp_path / "in/out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert predict(predict_inputs(str(tmp_path / "in"), (8, 8), out), out) is None  # nothing piles up in memory
    first = {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*") if f.is_file()}
    assert [row["name"] for row in summary(out)] == ["a.bmp", "sub/m.tif", "z.png"]
    assert set(first) == {
        "a.png", "a_overlay.png", "z.png", "z_overlay.png", "sub/m.png", "sub/m_overlay.png", "summary.csv",
        "notes.txt",
    }  # fmt: skip
    predict(predict_inputs(str(tmp_path / "in"), (8, 8), out), out)
    assert first == {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*") if f.is_file()}


def test_images_that_would_share_an_output_keep_their_suffixes(tmp_path: Path) -> None:
    save(tmp_path / "in/a.bmp", (4, 4))
    save(tmp_path / "in/a.png", (6, 6))
    predict(predict_inputs(str(tmp_path / "in"), (8, 8), tmp_path / "out"), tmp_path / "out")
    assert Image.open(tmp_path / "out/a.bmp.png").size == (4, 4)
    assert Image.open(tmp_path / "out/a.png.png").size == (6, 6)
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["a.jpg", "b.jpg", "s/a.jpg"], ["a", "b", "s/a"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "A.png"], ["a.jpg", "A.png"]),
        (["a.jpg", "a_overlay.jpg"], ["a.jpg", "a_overlay.jpg"]),
        (["a.jpg", "a.png", "a.jpg.gif"], ["a.jpg", "a.png", "a.jpg.gif"]),
        (["a.v1.jpg", "a.v2.jpg"], ["a.v1", "a.v2"]),
        (["noise"], ["noise"]),
        ([], []),
    ],
)
def test_output_stems(names: list[str], stems: list[str]) -> None:
    found = output_stems(names)
    assert list(found) == names
    assert list(found.values()) == stems
    files = [(stem + end).lower() for stem in found.values() for end in (".png", "_overlay.png")]
    assert len(set(files)) == len(files)


class Breaks(Halves):
    def predict_step(self, batch: Any, batch_idx: int) -> list[Tensor]:
        if batch_idx == 2:
            raise RuntimeError("the power failed")
        return super().predict_step(batch, batch_idx)


def test_what_was_done_before_an_error_is_kept_whole(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path / f"in/{name}.png", (4, 4))
    with pytest.raises(RuntimeError, match="the power failed"):
        predict(predict_inputs(str(tmp_path / "in"), (8, 8), tmp_path / "out"), tmp_path / "out", Breaks())
    assert [row["name"] for row in summary(tmp_path / "out")] == ["a.png", "b.png"]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "a.png", "a_overlay.png", "b.png", "b_overlay.png", "summary.csv",
    ]  # fmt: skip


def test_an_unreadable_image_ends_the_run_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", (4, 4))
    (tmp_path / "in/b.png").write_text("text")
    with pytest.raises(ValueError, match=r"b\.png is no image"):
        predict(predict_inputs(str(tmp_path / "in"), (8, 8), tmp_path / "out"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


TWO_RANKS = """
import json, sys
from pathlib import Path
import structseg
from pytorch_lightning import Trainer
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader
from structseg.datamodules.predict.inputs import predict_inputs
from structseg.datamodules.batch import collate
from tests.lightning_modules.callbacks.test_prediction_writer import SPACE, Halves
from structseg.lightning_modules.callbacks.prediction_writer import PredictionWriter

def main():
    folder = Path(sys.argv[1])
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, use_distributed_sampler=False,
        callbacks=[PredictionWriter(folder / "out", SPACE)], enable_progress_bar=False, enable_checkpointing=False)
    data = predict_inputs(str(folder / "in"), (8, 8), folder / "out")
    sampler = UnrepeatedDistributedSampler(data, num_replicas=2, rank=trainer.global_rank, shuffle=False)
    trainer.predict(Halves(), DataLoader(data, sampler=sampler, collate_fn=collate))

main()
"""


@pytest.mark.slow
def test_two_ranks_write_one_summary(tmp_path: Path) -> None:
    for name in "abcde":
        save(tmp_path / f"in/{name}.png", (4, 4))
    script = tmp_path / "run.py"
    script.write_text(TWO_RANKS)
    run_ranks(2, tmp_path / "logs", [str(script), str(tmp_path)])
    assert [row["name"] for row in summary(tmp_path / "out")] == [f"{name}.png" for name in "abcde"]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted(
        [f"{name}{end}" for name in "abcde" for end in (".png", "_overlay.png")] + ["summary.csv"]
    )


av = pytest.importorskip("av", reason="PyAV is an extra: pip install structseg[video]")


class Frames(IterableDataset[Sample]):
    """Frames of one grey, (h, w); a file's with a `frame_rate`, a camera's without."""

    def __init__(self, count: int, size: tuple[int, int], frame_rate: Fraction | None, interrupt_at: int = -1) -> None:
        self.count, self.size, self.frame_rate, self.interrupt_at = count, size, frame_rate, interrupt_at

    def __iter__(self) -> Iterator[Sample]:
        for number in range(self.count):
            if number == self.interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
            original = torch.full((3, *self.size), 100 / 255)
            yield {"image": original, "original": original, "name": f"clip/{number:06d}"}


def read_back(file: Path) -> tuple[list[np.ndarray], list[float], Any]:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        rate = Fraction(stream.average_rate.numerator, stream.average_rate.denominator)
    return [frame.to_ndarray(format="rgb24").astype(int) for frame in decoded], [frame.time for frame in decoded], rate


def test_a_video_file_becomes_an_overlay_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for _ in range(10):
            pixels = np.full((96, 128, 3), 100, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    predict(predict_inputs(str(tmp_path / "clip.mp4"), (16, 16), tmp_path / "out"), tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["clip_overlay.mp4", "summary.csv"]
    frames, times, rate = read_back(tmp_path / "out/clip_overlay.mp4")
    assert len(frames) == 10
    assert rate == 25
    assert times == pytest.approx([i / 25 for i in range(10)])
    for number, frame in enumerate(frames):
        assert frame.shape == (96, 128, 3)
        assert np.abs(frame[40:, 4:60] - 100).max() < 8  # the background keeps its colour
        assert np.abs(frame[40:, 68:] - (150, 100, 50)).max() < 8  # half of it and half of (200, 100, 0)
        corner = frame[:20, :60]
        if number == 0:
            assert np.abs(corner - 100).max() < 8  # one frame has no rate yet
        else:
            assert corner.max() > 200  # white digits
            assert corner.min() < 40  # with a black edge
    rows = summary(tmp_path / "out")
    assert [row["name"] for row in rows] == [f"clip/{number:06d}" for number in range(10)]
    assert {row["right_pixels"] for row in rows} == {str(64 * 96)}


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (49, 64), (48, 63)])
@pytest.mark.parametrize("codecs", ["all", "without H.264"])
def test_odd_sizes_and_both_codecs(
    size: tuple[int, int], codecs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codecs != "all":
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    predict(Frames(4, size, Fraction(30000, 1001)), tmp_path)
    frames, _, rate = read_back(tmp_path / "clip_overlay.mp4")
    assert [frame.shape for frame in frames] == [(*size, 3)] * 4
    assert rate == Fraction(30000, 1001)
    if min(size) > 40:
        assert np.abs(frames[3][42:, 40:] - (150, 100, 50)).max() < 12


def test_a_camera_plays_at_the_time_at_which_its_frames_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 10.5, 11.0, 13.0])
    monkeypatch.setattr("structseg.lightning_modules.callbacks.overlay_video.time.perf_counter", lambda: next(clock))
    predict(Frames(5, (16, 16), None), tmp_path)
    frames, times, _ = read_back(tmp_path / "clip_overlay.mp4")
    assert len(frames) == 5
    assert times == pytest.approx([0, 0.5, 0.501, 1.0, 3.0])  # two at one time would be refused


def test_an_interrupted_video_is_playable(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        predict(Frames(50, (48, 64), Fraction(25), interrupt_at=6), tmp_path)
    signal.signal(signal.SIGINT, before)
    frames, _, _ = read_back(tmp_path / "clip_overlay.mp4")
    rows = summary(tmp_path)
    assert 4 <= len(frames) <= 6
    assert len(rows) == len(frames)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["clip_overlay.mp4", "summary.csv"]


def test_a_video_on_several_devices_is_refused(tmp_path: Path) -> None:
    class Two:
        world_size = 2
        predict_dataloaders = DataLoader(Frames(1, (4, 4), None))

    with pytest.raises(ValueError, match=r"a video needs one device, not 2; set --trainer\.devices 1"):
        PredictionWriter(tmp_path / "out", SPACE).on_predict_start(Two(), Halves())
    assert not (tmp_path / "out").exists()
