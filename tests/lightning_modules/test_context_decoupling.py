"""Objects pasted into other views: by hand, with tags, through a view, and what stays as it is."""

import pytest
import torch

from lightning_modules.context_decoupling import paste_objects


def two(own=(1, 2)):
    """8 x 8: image 0 is 0.25 with class `own[0]` at the left half, image 1 is 0.75 with `own[1]` in the top quarter."""
    image = torch.stack([torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.75)])
    context = torch.zeros(2, 3, 8, 8)
    context[0, own[0], :, :4] = 0.9
    context[1, own[1], :2] = 0.9
    context[:, 0] = 1 - context[:, 1:].sum(1)
    return image, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), context


def test_by_hand():
    image, tags, context = two()
    found, said = paste_objects(image, tags, context, None, 1.0)
    assert (found[0, :, :2] == 0.75).all()  # the quarter of 1
    assert (found[0, :, 2:] == 0.25).all()
    assert (found[1, :, :, :4] == 0.25).all()  # the half of 0
    assert (found[1, :, :, 4:] == 0.75).all()
    assert said.tolist() == [[0.75, 1.0], [1.0, 0.5]]  # 24 of 32 pixels are still seen, 8 of 16
    assert tags.tolist() == [[1, 0], [0, 1]]
    assert (image[0] == 0.25).all()


def test_through_a_view():
    image, tags, context = two()
    mirrored = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    found, _ = paste_objects(image, tags, context, mirrored, 1.0)
    assert (found[1, :, :, 4:] == 0.25).all()
    assert (found[1, :, :, :4] == 0.75).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_views(share):
    torch.manual_seed(0)
    image, context = torch.rand(400, 1, 4, 4), torch.zeros(400, 2, 4, 4)
    context[:, 1, :2] = 1.0
    found, tags = paste_objects(image, torch.ones(400, 1), context, None, share)
    changed = (found != image).flatten(1).any(1).float().mean()
    assert abs(changed - share) < 0.08
    assert (found[:, :, 2:] == image[:, :, 2:]).all()
    assert (tags == 1).all()  # what hides the class is the class


def test_of_several_classes_one_is_drawn():
    torch.manual_seed(0)
    image, tags, context = two()
    context[0, 2, :, 4:], context[0, 0] = 0.9, 0.0
    tags[0, 1] = 1.0
    sides = {bool((paste_objects(image, tags, context, None, 1.0)[0][1, 0, :, 0] == 0.25).all()) for _ in range(30)}
    assert sides == {True, False}
    for _ in range(10):
        found, said = paste_objects(image, tags, context, None, 1.0)
        left = bool((found[1, 0, :, 0] == 0.25).all())
        assert said[1].tolist() == ([1.0, 0.5] if left else [0.0, 1.0])


def test_what_is_not_there_is_not_pasted():
    image, tags, context = two()
    context[1, 2] = 0.5  # not more than half
    context[0, 1], context[0, 1, 0, 0] = 0.0, 0.9  # 1 pixel of 64 is just enough, of 144 too little
    found, said = paste_objects(image, tags, context, None, 1.0)
    assert torch.equal(found[0], image[0])
    assert said[0].tolist() == [1, 0]
    assert (found[1] == 0.25).sum() == 3
    large = torch.nn.functional.interpolate(image, (12, 12))
    small = torch.zeros(2, 3, 12, 12)
    small[0, 1, 0, 0] = 1.0
    assert torch.equal(paste_objects(large, tags, small, None, 1.0)[0], large)


def test_a_single_image_stays():
    image, tags, context = (given[:1] for given in two())
    found, said = paste_objects(image, tags, context, None, 1.0)
    assert torch.equal(found, image)
    assert torch.equal(said, tags)


def test_with_the_masks_of_other_images_a_tag_of_the_image_goes_along():
    image, tags, context = two()
    found, said = paste_objects(image, tags, context.flip(0), None, 1.0)
    assert (found[0, :, :, :4] == 0.75).all()  # the shape is of image 0, the pixels and the tag are of image 1
    assert said[0].tolist() == [1.0, 1.0]
    assert (found[1, :, :2] == 0.25).all()
    assert said[1].tolist() == [1.0, 1.0]
