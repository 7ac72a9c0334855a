"""How fast a core renders faces, beside a peer: decoding and shrinking a JPEG of 512 pixels from memory."""

import io

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.synthetic_faces.render import render_face
from tests.benchmarks.measure import cpu_seconds

_ROUNDS, _EACH = 5, 24


@pytest.mark.slow
def test_rendering_beside_reading_a_jpeg(benchmark, capsys):
    """A data set on disk costs a decode and a resize for each image; a rendered one costs the rendering."""
    buffer = io.BytesIO()
    Image.fromarray(render_face(0, 0, (512, 512)).image).save(buffer, "JPEG", quality=90)
    jpeg = buffer.getvalue()

    def read() -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR))

    def paint() -> list[np.ndarray]:
        return [render_face(0, index, (128, 128)).image for index in range(_EACH)]

    assert read().shape == paint()[0].shape == (128, 128, 3)
    benchmark.pedantic(paint, rounds=1)
    ours, peer = cpu_seconds(paint, _ROUNDS) / _EACH, cpu_seconds(read, _ROUNDS, _EACH)
    report = {
        "images/s a core": round(1 / ours),
        "JPEG images/s a core": round(1 / peer),
        "ratio": round(peer / ours, 2),
    }
    benchmark.extra_info.update(report)
    with capsys.disabled():
        print(f"\n  {', '.join(f'{name} {value}' for name, value in report.items())}")
