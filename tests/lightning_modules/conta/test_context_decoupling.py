"""Objects pasted into other views: by hand, with their tags, and what stays as it is."""

import pytest
import torch

from structseg.lightning_modules.conta.context_decoupling import paste_objects


def two():
    """8 x 8: image 0 is 0.25 with class 1 at the left half, image 1 is 0.75 with class 2 in the top quarter."""
    image = torch.stack([torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.75)])
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)
    mask[0, :, :4], mask[1, :2], mask[:, 7, 7] = 1, 2, 255
    return image, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), mask


def test_by_hand():
    image, tags, mask = two()
    found, said = paste_objects(image, tags, mask, 1.0)
    assert (found[0, :, :2] == 0.75).all()  # the quarter of 1
    assert (found[0, :, 2:] == 0.25).all()
    assert (found[1, :, :, :4] == 0.25).all()  # the half of 0
    assert (found[1, :, :, 4:] == 0.75).all()
    assert said.tolist() == [[0.75, 1.0], [1.0, 0.5]]  # 24 of 32 pixels are still seen, 8 of 16
    assert tags.tolist() == [[1, 0], [0, 1]]
    assert (image[0] == 0.25).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_views(share):
    torch.manual_seed(0)
    image, mask = torch.rand(400, 1, 4, 4), torch.zeros(400, 4, 4, dtype=torch.int64)
    mask[:, :2] = 1
    found, tags = paste_objects(image, torch.ones(400, 1), mask, share)
    changed = (found != image).flatten(1).any(1).float().mean()
    assert abs(changed - share) < 0.08
    assert (found[:, :, 2:] == image[:, :, 2:]).all()
    assert (tags == 1).all()  # what hides the class is the class


def test_of_several_classes_one_is_drawn():
    torch.manual_seed(0)
    image, tags, mask = two()
    mask[0, :, 4:] = 2
    tags[0, 1] = 1.0
    sides = set()
    for _ in range(30):
        found, said = paste_objects(image, tags, mask, 1.0)
        left = bool((found[1, 0, :, 0] == 0.25).all())
        sides.add(left)
        assert said[1].tolist() == ([1.0, 0.5] if left else [0.0, 1.0])
    assert sides == {True, False}


def test_what_is_not_there_or_tiny_is_not_pasted():
    image, tags, mask = two()
    mask[1], mask[0] = 255, 0
    mask[0, 0, 0] = 1  # 1 pixel of 64 is just enough, of 144 too little
    found, said = paste_objects(image, tags, mask, 1.0)
    assert torch.equal(found[0], image[0])
    assert said[0].tolist() == [1, 0]
    assert (found[1] == 0.25).sum() == 3
    large = torch.nn.functional.interpolate(image, (12, 12))
    small = torch.zeros(2, 12, 12, dtype=torch.int64)
    small[0, 0, 0] = 1
    assert torch.equal(paste_objects(large, tags, small, 1.0)[0], large)


def test_a_single_image_stays():
    image, tags, mask = (given[:1] for given in two())
    found, said = paste_objects(image, tags, mask, 1.0)
    assert torch.equal(found, image)
    assert torch.equal(said, tags)


def test_by_the_masks_of_other_images_a_tag_of_the_image_goes_along():
    image, tags, mask = two()
    found, said = paste_objects(image, tags, mask, 1.0, mask.flip(0))
    assert (found[0, :, :, :4] == 0.75).all()  # the shape is of image 0, the pixels and the tag are of image 1
    assert (found[1, :, :2] == 0.25).all()
    assert said.tolist() == [[0.0, 1.0], [1.0, 0.0]]  # here each shape is that of the object it hides
    mask[0] = mask[0].roll(2, 1)  # its object is at columns 2 to 5 now, the shape is still that of 0 to 3
    shapes = two()[2].flip(0)
    assert paste_objects(image, tags, mask, 1.0, shapes)[1].tolist() == [[0.5, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(("tags", "mask"), [((2, 3), (2, 8, 4)), ((3, 2), (3, 8, 8)), ((2, 2), (2, 1, 8, 8))])
def test_shapes_that_do_not_fit(tags, mask):
    with pytest.raises(ValueError, match=r"expected \(N, C, H, W\), \(N, n\) and \(N, H, W\)"):
        paste_objects(torch.zeros(2, 3, 8, 8), torch.zeros(tags), torch.zeros(mask, dtype=torch.int64), 1.0)
