"""Masks with a palette or in RGB: the classes' colours decide; a palette without them is a warning."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structseg.datamodules.images import VOID
from tests.data.every_set import make_set

SETS = ("voc", "celebamask_hq_compact")


def repack(path: Path, how: str) -> None:
    """Writes a mask anew: `packed` as an optimiser renumbers it, `foreign` in other colours, `rgb`, `mixed`."""
    image = Image.open(path)
    indices, flat = np.asarray(image), image.getpalette("RGB") or []
    colours = [tuple(flat[3 * i : 3 * i + 3]) for i in range(len(flat) // 3)] + [(0, 0, 0)] * 256
    colours[255] = VOID
    used = np.unique(indices)[::-1].tolist()
    if how == "rgb":
        Image.fromarray(np.array(colours[:256], dtype=np.uint8)[indices]).save(path)
        return
    if how == "foreign":
        chosen = [(7 * i % 256, 3, i) for i in range(256)]
    else:
        chosen = [colours[index] for index in used]
        indices = np.searchsorted(used[::-1], indices).astype(np.uint8)
        indices = (len(used) - 1 - indices).astype(np.uint8)
    if how == "mixed":
        chosen[-1] = (1, 2, 3)
    packed = Image.fromarray(indices)
    packed.putpalette([value for colour in chosen for value in colour])
    packed.save(path)


@pytest.mark.parametrize("how", ["packed", "foreign", "rgb"])
@pytest.mark.parametrize("name", SETS)
def test_the_same_classes_however_they_are_stored(tmp_path: Path, name: str, how: str) -> None:
    make = make_set(name, tmp_path)
    before = make().dataset("test")[0]["mask"]
    repack(make().file_samples("test", [])[0].masks[0], how)
    data = make()
    if how == "foreign":
        with pytest.warns(UserWarning, match=r"1 masks, first \S+png, have a palette without the classes' colours"):
            data.check_files(("test",))
    np.testing.assert_array_equal(data.dataset("test")[0]["mask"], before)


@pytest.mark.parametrize("name", SETS)
def test_contradictions_and_strange_colours_are_refused_at_the_start(tmp_path: Path, name: str) -> None:
    make = make_set(name, tmp_path)
    masks = [sample.masks[0] for sample in make().file_samples("test", [])]
    repack(masks[0], "mixed")
    Image.new("CMYK", Image.open(masks[1]).size).save(masks[1].with_suffix(".tif"))
    masks[1].with_suffix(".tif").replace(masks[1])
    with pytest.raises(
        ValueError, match=r"has the colour of class \d+, but other colours belong to no class.*has mode CMYK"
    ):
        make().check_files(("test",))
    repack(masks[0], "rgb")
    with pytest.raises(ValueError, match=r"has mode RGB and colour \(1, 2, 3\), which no class of"):
        make().dataset("test")[0] if name == "coco" else make().file_samples("test", [])[0].read_mask()
