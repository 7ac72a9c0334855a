"""What blobs cost a worker, beside a peer: decoding a JPEG of 250 pixels from memory and shrinking it to 128."""

import io

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.wrappers.blobs import BlobKind, make_blobs
from tests.benchmarks.measure import cpu_seconds
from tests.data.lfw import face_classes, photograph

_ROUNDS, _EACH = 7, 24


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("labels", 0.5), ("components", 0.5), ("superpixels", 12.0)])
def test_blobs_beside_reading_a_jpeg(kind: BlobKind, most: float, benchmark, capsys) -> None:
    """Blobs of labels and components must cost less than the image; superpixels are made once an image and worker."""
    buffer = io.BytesIO()
    Image.fromarray(photograph(face_classes((250, 250)))).save(buffer, "JPEG", quality=90)
    mask = face_classes((128, 128)).astype(np.int64)
    image = photograph(face_classes((128, 128))).astype(np.float32) / 255

    def read() -> np.ndarray:
        pixels = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
        return np.asarray(pixels.resize((128, 128), Image.Resampling.BILINEAR))

    def cut() -> np.ndarray:
        return make_blobs(mask, kind, image)

    assert read().shape[:2] == cut().shape
    benchmark.pedantic(cut, rounds=_EACH)
    ours, peer = cpu_seconds(cut, _ROUNDS, _EACH), cpu_seconds(read, _ROUNDS, _EACH)
    report = {"ms an image": round(1e3 * ours, 2), "JPEG ms": round(1e3 * peer, 2), "ratio": round(ours / peer, 2)}
    benchmark.extra_info.update(report)
    with capsys.disabled():
        print(f"\n  {kind}: {', '.join(f'{name} {value}' for name, value in report.items())}")
    assert ours < most * peer
