import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from structseg.lightning_modules.networks.spatial_transformer import (
    centers_from_theta,
    crop_labels,
    crop_parts,
    integer_crop,
    part_centers,
    paste_labels,
    paste_parts,
    reframe_theta,
    theta_from_centers,
)

SETS = ("whole", "whole2", "frac")
PARTS, SINGLE = 6, 5
# each part's foreground channels: five single parts, then the mouth's three classes
TO = torch.tensor([[-1, k, -1, -1] for k in range(1, 6)] + [[-1, 6, 7, 8]])


@pytest.fixture(scope="module")
def reference(golden) -> dict[str, np.ndarray]:
    with np.load(golden / "stn_crop.npz") as file:
        return dict(file)


def _image(reference, dtype=torch.float64) -> torch.Tensor:
    return torch.from_numpy(reference["image"]).to(dtype)[None]


def _reference_theta(reference, name: str) -> torch.Tensor:
    return torch.from_numpy(reference[f"{name}_theta"])[None]


def _one_hot_parts(crops: np.ndarray, dtype) -> torch.Tensor:
    """The published label crops, channels of bg, fg five times and bg, 6, 7, 8, as (1, 6, 4, h, w)."""
    parts = torch.zeros(1, PARTS, 4, *crops.shape[1:], dtype=dtype)
    maps = torch.from_numpy(crops).to(dtype)
    parts[0, :SINGLE, :2] = maps[:10].unflatten(0, (SINGLE, 2))
    parts[0, SINGLE] = maps[10:]
    return parts


def _paste_over_the_whole_image(parts, theta, size, to, mode="bilinear"):
    """What `paste_parts` must equal: each part sampled at every pixel of the image."""
    n, p, c, _, _ = parts.shape
    inverse = torch.zeros_like(theta)
    for axis in (0, 1):
        inverse[..., axis, axis] = 1 / theta[..., axis, axis]
        inverse[..., axis, 2] = -theta[..., axis, 2] / theta[..., axis, axis]
    grid = F.affine_grid(inverse.flatten(0, 1), [n * p, c, *size], align_corners=True)
    full = F.grid_sample(parts.flatten(0, 1), grid, mode, "zeros", align_corners=True).unflatten(0, (n, p))
    out = parts.new_zeros(n, int(to.max()) + 1, *size)
    for part in range(p):
        for channel in range(c):
            if to[part, channel] >= 0:
                k = to[part, channel]
                out[:, k] = torch.maximum(out[:, k], full[:, part, channel])
    return out


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _free(numbers):
    """Theta of its four numbers alone: the zeros off the diagonal may not be moved."""
    sx, sy, tx, ty = numbers.unbind(-1)
    zero = torch.zeros_like(sx)
    return torch.stack((sx, zero, tx, zero, sy, ty), -1).unflatten(-1, (2, 3))


def _numbers(theta):
    return theta.flatten(-2)[..., [0, 4, 2, 5]].requires_grad_()


def _theta(centers, scale_x, scale_y, size):
    """Windows at centres in pixels with scales given outright."""
    theta = theta_from_centers(torch.tensor(centers, dtype=torch.float64), (3, 3), size)
    theta[..., 0, 0], theta[..., 1, 1] = scale_x, scale_y
    return theta


class TestTheta:
    def test_by_hand(self):
        theta = theta_from_centers(torch.tensor([[[50.0, 10.0], [0.0, 20.0]]]), (3, 5), (21, 101))
        expected = torch.tensor([[[[0.04, 0, 0], [0, 0.1, 0]], [[0.04, 0, -1], [0, 0.1, 1]]]])
        torch.testing.assert_close(theta, expected)

    @pytest.mark.parametrize("name", SETS)
    def test_is_the_published_one(self, reference, name):
        centers = torch.from_numpy(reference[f"{name}_centres_yx"]).flip(-1)[None]
        theta = theta_from_centers(centers, (81, 81), (150, 200))
        torch.testing.assert_close(theta, _reference_theta(reference, name), rtol=0, atol=1e-14)

    def test_centers_come_back(self):
        centers = 100 * _random(0, 2, 3, 2) - 20
        theta = theta_from_centers(centers, (7, 9), (40, 61))
        torch.testing.assert_close(centers_from_theta(theta, (40, 61)), centers)
        assert centers_from_theta(theta.half(), (40, 61)).dtype == torch.float32

    def test_is_differentiable_in_the_centers(self):
        centers = torch.tensor([[[3.0, 4.0]]], requires_grad=True)
        theta_from_centers(centers, (3, 3), (11, 21))[..., 2].sum().backward()
        torch.testing.assert_close(centers.grad, torch.tensor([[[2 / 20, 2 / 10]]]))

    def test_equation_21_is_not_a_crop(self):
        """The figures in the docstring: 1.15 % of 81 in 1024 pixels, 0.46 pixels at the edge, a shift of x / W."""
        x, w, width = 700.0, 81, 1024
        equation = torch.tensor([[[[w / width, 0, -1 + 2 * x / width], [0, w / width, -1 + 2 * x / width]]]])
        ours = theta_from_centers(torch.tensor([[[x, x]]]), (w, w), (width, width))
        assert (equation / ours)[0, 0, 0, 0].item() == pytest.approx(1.0115, abs=5e-5)
        shift = centers_from_theta(equation, (width, width))[0, 0, 0].item() - x
        assert shift == pytest.approx(-x / width, abs=1e-3)
        stretch = (equation - ours)[0, 0, 0, 0].item() * (width - 1) / 2
        assert stretch == pytest.approx(0.46, abs=0.005)


class TestReframe:
    def test_same_pixels_in_a_padded_frame(self):
        own, size, window = torch.tensor([[30, 50], [41, 33]]), (60, 70), (7, 9)
        centers = torch.tensor([[[20.3, 11.0], [48.0, 2.5]], [[3.0, 40.0], [30.7, 20.2]]], dtype=torch.float64)
        frame = _random(1, 2, 3, *size)
        thetas = []
        for n, (h, w) in enumerate(own.tolist()):
            frame[n, :, h:], frame[n, :, :, w:] = 0, 0
            thetas.append(theta_from_centers(centers[n : n + 1], window, (h, w)))
        theta = reframe_theta(torch.cat(thetas), own, size)
        torch.testing.assert_close(theta, theta_from_centers(centers, window, size))
        for n, (h, w) in enumerate(own.tolist()):
            alone = crop_parts(frame[n : n + 1, :, :h, :w], thetas[n], window)
            torch.testing.assert_close(crop_parts(frame, theta, window)[n : n + 1], alone)

    def test_one_size_for_all_and_gradient(self):
        theta = theta_from_centers(torch.tensor([[[4.0, 5.0]], [[1.0, 2.0]]]), (3, 3), (11, 21)).requires_grad_()
        framed = reframe_theta(theta, (11, 21), (21, 81))
        expected = torch.tensor([[[2 / 80, 0, -1 + 8 / 80], [0, 2 / 20, -1 + 10 / 20]]])
        torch.testing.assert_close(framed[0], expected)
        framed.sum().backward()
        torch.testing.assert_close(theta.grad, torch.tensor([[0.25] * 3, [0.5] * 3]).expand_as(theta))


class TestCropParts:
    @pytest.mark.parametrize("name", ["whole", "whole2"])
    @pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 0.02)])
    def test_published_whole_pixel_crops(self, reference, name, dtype, most):
        crops = crop_parts(_image(reference, dtype), _reference_theta(reference, name), (81, 81))
        assert crops.dtype == dtype
        expected = torch.from_numpy(reference[f"{name}_crops"]).to(dtype)
        torch.testing.assert_close(crops[0], expected, rtol=0, atol=most)

    def test_published_fractional_crops(self, reference):
        crops = crop_parts(_image(reference), _reference_theta(reference, "frac"), (81, 81))[0]
        torch.testing.assert_close(crops, torch.from_numpy(reference["frac_crops"]).double(), rtol=0, atol=2e-5)
        torch.testing.assert_close(crops[0], torch.from_numpy(reference["frac_crops_part0_f64"]), rtol=0, atol=1e-10)

    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def test_odd_windows_at_whole_pixels_are_integer_crops(self, data):
        height, width = data.draw(st.integers(4, 90)), data.draw(st.integers(4, 90))
        window = tuple(2 * data.draw(st.integers(1, (side - 1) // 2)) + 1 for side in (height, width))
        channels, parts, images = (data.draw(st.integers(1, most)) for most in (4, 4, 2))
        x, y = (st.integers(-side, 2 * side) | st.sampled_from((0, side - 1)) for side in (width, height))
        centers = torch.tensor(
            [[[data.draw(x), data.draw(y)] for _ in range(parts)] for _ in range(images)], dtype=torch.float64
        )
        image = 255 * _random(height * width, images, channels, height, width)
        theta = theta_from_centers(centers, window, (height, width))
        crops = crop_parts(image, theta, window)
        assert crops.shape == (images, parts, channels, *window)
        torch.testing.assert_close(crops, integer_crop(image, centers, window), rtol=0, atol=1e-9)
        labels = image[:, 0].long()
        expected = integer_crop(labels[:, None] + 1, centers, window)[:, :, 0] - 1
        assert crop_labels(labels, theta, window, outside=-1).equal(expected)

    def test_even_windows_interpolate_where_the_baseline_is_offset(self):
        """Figure 7: of the pixels 0 to 5 around the centre 3, a window of 4 takes 1..4; the sampler means of two."""
        image = torch.arange(6.0).expand(1, 1, 6, 6).contiguous()
        center = torch.tensor([[[3.0, 3.0]]])
        crop = crop_parts(image, theta_from_centers(center, (4, 4), (6, 6)), (4, 4))
        torch.testing.assert_close(crop[0, 0, 0, 0], torch.tensor([1.5, 2.5, 3.5, 4.5]))
        assert integer_crop(image, center, (4, 4))[0, 0, 0, 0].tolist() == [1, 2, 3, 4]

    def test_a_zoomed_window(self):
        """A scale of twice the window's own takes every second pixel."""
        image = _random(2, 1, 2, 21, 31)
        theta = theta_from_centers(torch.tensor([[[14.0, 9.0]]], dtype=torch.float64), (5, 7), (21, 31))
        theta[..., :2] *= 2
        crop = crop_parts(image, theta, (5, 7))[0, 0]
        torch.testing.assert_close(crop, image[0, :, 5:14:2, 8:21:2])

    def test_gradients(self):
        image = _random(3, 2, 2, 7, 8).requires_grad_()
        centers = [[[2.3, 3.4], [0.2, 6.3]], [[7.3, 1.1], [4.4, 4.2]]]
        numbers = _numbers(_theta(centers, 0.43, 0.37, (7, 8)))
        assert torch.autograd.gradcheck(lambda i, n: crop_parts(i, _free(n), (4, 5)), (image, numbers))
        grad = torch.autograd.grad(crop_parts(image, _free(numbers), (4, 5)).square().sum(), numbers)[0]
        assert (grad != 0).all()

    def test_float32_inside_autocast(self):
        image = _random(4, 1, 3, 20, 20).float()
        theta = theta_from_centers(torch.tensor([[[9.3, 8.1]]]), (7, 7), (20, 20))
        expected = crop_parts(image, theta, (7, 7))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theta_again = theta_from_centers(torch.tensor([[[9.3, 8.1]]]), (7, 7), (20, 20))
            crops = crop_parts(image, theta_again, (7, 7))
            half = crop_parts(image.bfloat16(), theta, (7, 7))
            pasted = paste_parts(crops, theta, (20, 20), torch.tensor([[0, 1, 2]]))
            center, _ = part_centers(image)
        assert crops.equal(expected)
        assert {crops.dtype, half.dtype, pasted.dtype, center.dtype} == {torch.float32}
        torch.testing.assert_close(half, crop_parts(image.bfloat16().float(), theta, (7, 7)), rtol=0, atol=0)


class TestCropLabels:
    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_published(self, reference, name, dtype):
        mask = torch.from_numpy(reference["labels"]).long()[None]
        theta = _reference_theta(reference, name)
        if dtype == torch.float64 or name != "frac":  # half pixels round either way in float32
            crops = crop_labels(mask, theta.to(dtype), (81, 81), outside=0)[0]
            expected = reference[f"{name}_label_crops"]
            for part in range(SINGLE):
                assert torch.equal(crops[part] == part + 1, torch.from_numpy(expected[2 * part + 1] > 0))
            for k in (6, 7, 8):
                assert torch.equal(crops[SINGLE] == k, torch.from_numpy(expected[10 + k - 5] > 0))

    def test_255_passes_and_outside_is_what_is_said(self):
        mask = torch.tensor([[[255, 1, 2], [3, 255, 5], [6, 7, 8]]])
        theta = theta_from_centers(torch.tensor([[[0.0, 0.0], [2.0, 1.0]]]), (3, 3), (3, 3))
        crops = crop_labels(mask, theta, (3, 3), outside=9)
        assert crops.dtype == torch.int64
        assert crops[0, 0].tolist() == [[9, 9, 9], [9, 255, 1], [9, 3, 255]]
        assert crops[0, 1].tolist() == [[1, 2, 9], [255, 5, 9], [7, 8, 9]]

    def test_is_nearest_sampling(self):
        mask = (9 * _random(5, 2, 30, 41)).long()
        theta = _theta([[[3.3, 25.2], [39.1, 2.0]], [[20.6, 15.9], [11.0, 60.0]]], 0.31, 0.23, (30, 41))
        sampled = crop_parts(mask[:, None].double() + 1, theta, (9, 11), mode="nearest")[:, :, 0] - 1
        assert crop_labels(mask, theta, (9, 11), outside=-1).equal(sampled.long())
        assert (sampled == -1).any()


class TestIntegerCrop:
    def test_by_hand(self):
        image = torch.arange(12).view(1, 1, 3, 4)
        centers = torch.tensor([[[1.4, 0.6], [3.0, 2.0], [0.0, 5.0]]])
        crops = integer_crop(image, centers, (3, 3))
        assert crops.dtype == torch.int64
        assert crops[0, :, 0].tolist() == [
            [[0, 1, 2], [4, 5, 6], [8, 9, 10]],
            [[6, 7, 0], [10, 11, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        ]

    def test_gradient_reaches_the_pixels_and_no_others(self):
        image = torch.zeros(1, 1, 4, 4, requires_grad=True)
        integer_crop(image, torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), (3, 3)).sum().backward()
        assert image.grad[0, 0].tolist() == [[2, 2, 1, 0], [2, 2, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]

    def test_centers_far_away(self):
        image = torch.ones(1, 2, 5, 5)
        assert not integer_crop(image, torch.tensor([[[1e30, 2.0], [2.0, -1e30]]]), (3, 3)).any()


class TestPartCenters:
    def test_by_hand(self):
        maps = torch.zeros(1, 3, 4, 6)
        maps[0, 0, 1, 2:5] = 1
        maps[0, 1, 0, 0], maps[0, 1, 3, 4] = 0.25, 0.75
        centers, mass = part_centers(maps)
        torch.testing.assert_close(centers, torch.tensor([[[3.0, 1.0], [3.0, 2.25], [2.5, 1.5]]]))
        assert mass.tolist() == [[3, 1, 0]]

    def test_masks_and_large_images(self):
        mask = torch.zeros(1, 1, 1024, 2048, dtype=torch.bool)
        mask[..., 301:1000, 901:2000] = True
        centers, mass = part_centers(mask)
        torch.testing.assert_close(centers, torch.tensor([[[1450.0, 650.0]]]), rtol=0, atol=1e-3)
        assert mass.item() == 699 * 1099

    def test_gradients_without_nan(self):
        maps = _random(6, 1, 2, 4, 5).requires_grad_()
        assert torch.autograd.gradcheck(part_centers, (maps,))
        empty = torch.zeros(1, 1, 3, 3, requires_grad=True)
        part_centers(empty)[0].sum().backward()
        assert empty.grad.isfinite().all()


class TestPasteParts:
    @pytest.mark.parametrize("name", SETS)
    def test_published(self, reference, name):
        """Its product over the parts' backgrounds is, for one-hot crops, 1 - the largest foreground."""
        parts = _one_hot_parts(reference[f"{name}_label_crops"], torch.float64)
        foreground = torch.cat((1 - parts[:, :, :1], parts[:, :, 1:]), 2)
        to = TO.clone()
        to[:, 0] = 0
        pasted = paste_parts(foreground, _reference_theta(reference, name), (150, 200), to, mode="nearest")[0]
        pasted[0] = 1 - pasted[0]
        assert torch.equal(pasted, torch.from_numpy(reference[f"{name}_pasteback"]).double())

    @pytest.mark.parametrize("name", ["whole", "whole2"])
    @pytest.mark.parametrize("mode", ["nearest", "bilinear"])
    def test_published_in_float32(self, reference, name, mode):
        parts = _one_hot_parts(reference[f"{name}_label_crops"], torch.float32)
        pasted = paste_parts(parts, _reference_theta(reference, name), (150, 200), TO, mode=mode)[0, 1:]
        expected = torch.from_numpy(reference[f"{name}_pasteback"][1:]).float()
        torch.testing.assert_close(pasted, expected, rtol=0, atol=0 if mode == "nearest" else 2e-4)

    @pytest.mark.parametrize("mode", ["nearest", "bilinear"])
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_equals_sampling_over_the_whole_image(self, mode, data):
        """Whatever the scale and wherever the window: within, across the border, outside; larger than the image."""
        size = (data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40)))
        window = (data.draw(st.integers(2, 12)), data.draw(st.integers(2, 12)))
        images, count = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
        number = st.floats(-2, 2, allow_nan=False, width=32)
        theta = torch.zeros(images, count, 2, 3, dtype=torch.float64)
        for each in theta.flatten(0, 1):
            each[0, 0], each[1, 1] = (data.draw(st.floats(0.03125, 1.5, width=32)) for _ in range(2))
            each[0, 2], each[1, 2] = data.draw(number), data.draw(number)
        theta = theta + 1e-7 * _random(count, *theta.shape) * (theta != 0)  # no ties at half pixels
        parts = _random(sum(size), images, count, 3, *window)
        to = torch.tensor(
            data.draw(st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=count, max_size=count))
        )
        to[0, 0] = 2
        pasted = paste_parts(parts, theta, size, to, mode)
        torch.testing.assert_close(pasted, _paste_over_the_whole_image(parts, theta, size, to, mode), rtol=0, atol=1e-9)

    @settings(max_examples=50, deadline=None)
    @given(data=st.data())
    def test_crop_then_paste_gives_the_windows_values(self, data):
        height, width = data.draw(st.integers(3, 60)), data.draw(st.integers(3, 60))
        window = tuple(2 * data.draw(st.integers(1, (side - 1) // 2)) + 1 for side in (height, width))
        x, y = data.draw(st.integers(-9, width + 9)), data.draw(st.integers(-9, height + 9))
        image = _random(height + width, 1, 2, height, width)
        theta = theta_from_centers(torch.tensor([[[x, y]]], dtype=torch.float64), window, (height, width))
        pasted = paste_parts(crop_parts(image, theta, window), theta, (height, width), torch.tensor([[1, 0]]))
        inside = torch.zeros(height, width)
        top, left = y - window[0] // 2, x - window[1] // 2
        inside[max(top, 0) : max(top + window[0], 0), max(left, 0) : max(left + window[1], 0)] = 1
        torch.testing.assert_close(pasted, (image * inside).flip(1), rtol=0, atol=1e-10)

    def test_a_window_fades_over_one_of_its_pixels(self):
        """A window of ones, three pixels wide at twice the scale, around the centre 8 of a row."""
        size = (3, 17)
        theta = _theta([[[8.0, 1.0]]], 4 / 16, 1.0, size)
        pasted = paste_parts(torch.ones(1, 1, 1, 3, 3, dtype=torch.float64), theta, size, torch.tensor([[0]]))
        expected = [0, 0, 0, 0.0, 0, 0.5, 1, 1, 1, 1, 1, 0.5, 0, 0, 0, 0, 0]
        torch.testing.assert_close(pasted[0, 0, 1], torch.tensor(expected, dtype=torch.float64))

    def test_overlaps_by_maximum(self):
        theta = theta_from_centers(torch.tensor([[[2.0, 2.0], [4.0, 2.0]]]), (3, 3), (5, 7))
        parts = torch.stack((torch.full((1, 3, 3), 0.25), torch.full((1, 3, 3), 0.75)))[None].requires_grad_()
        pasted = paste_parts(parts, theta, (5, 7), torch.tensor([[0], [0]]), "nearest")
        assert pasted[0, 0, 2].tolist() == [0, 0.25, 0.25, 0.75, 0.75, 0.75, 0]
        pasted.sum().backward()
        assert parts.grad[0, 0, 0, 1].tolist() == [1, 1, 0]
        assert parts.grad[0, 1, 0, 1].tolist() == [1, 1, 1]

    def test_channels_go_where_they_are_sent(self):
        theta = theta_from_centers(torch.tensor([[[1.0, 1.0]]]), (3, 3), (3, 3))
        parts = torch.tensor([0.1, 0.2, 0.3]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 3, 3)
        pasted = paste_parts(parts, theta, (3, 3), torch.tensor([[3, -1, 1]]), "nearest")
        torch.testing.assert_close(pasted[0, :, 1, 1], torch.tensor([0, 0.3, 0, 0.1]))

    @pytest.mark.parametrize("center", [(-30.0, 5.0), (5.0, 90.0), (1e6, -1e6)])
    def test_a_window_beyond_the_image_leaves_nothing(self, center):
        theta = theta_from_centers(torch.tensor([[center]]), (5, 5), (20, 20))
        assert not paste_parts(torch.ones(1, 1, 1, 5, 5), theta, (20, 20), torch.tensor([[0]])).any()
        assert not paste_labels(torch.ones(1, 1, 1, 5, 5), theta, (20, 20), torch.tensor([[1]])).any()

    def test_gradients(self):
        """Two overlapping windows in one channel, one across the border."""
        size = (9, 8)
        parts = _random(7, 1, 2, 2, 3, 4).requires_grad_()
        numbers = _numbers(_theta([[[3.3, 3.4], [6.2, 5.3]]], 0.53, 0.47, size))
        to = torch.tensor([[1, 0], [1, 2]])
        assert torch.autograd.gradcheck(lambda p, n: paste_parts(p, _free(n), size, to), (parts, numbers))
        grad = torch.autograd.grad(paste_parts(parts, _free(numbers), size, to).square().sum(), numbers)[0]
        assert (grad != 0).all()

    def test_image_size_does_not_matter_to_the_work(self):
        """Nothing grows with the image but what is returned, and a line along each side: by what is allocated."""

        def allocated(side: int) -> int:
            theta = theta_from_centers(torch.full((1, 6, 2), side / 2), (31, 31), (side, side))
            parts = torch.rand(1, 6, 4, 31, 31, requires_grad=True)
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                pasted = paste_parts(parts, theta, (side, side), TO)
            events = profile.profiler.kineto_results.events()
            taken = sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)
            return taken - pasted.numel() * pasted.element_size()

        assert 0 <= allocated(2048) - allocated(512) <= 4 * 2 * (2048 - 512)


class TestPasteLabels:
    def _by_argmax(self, parts, theta, size, to, mode):
        classes = paste_parts(parts, theta, size, to, mode)
        mass = (parts * (to > 0)[None, :, :, None, None]).sum(2, keepdim=True)
        classes[:, 0] = 1 - paste_parts(mass, theta, size, torch.zeros(len(to), 1, dtype=torch.int64), mode)[:, 0]
        return classes.argmax(1)

    @pytest.mark.parametrize("mode", ["nearest", "bilinear"])
    @pytest.mark.parametrize("background", [0, -1])
    @pytest.mark.parametrize("seed", range(5))
    def test_is_the_argmax_of_the_pasted_maps(self, mode, background, seed):
        """Soft parts that overlap, zoomed and across the border."""
        size = (60, 75)
        to = TO.clone()
        to[:, 0] = background
        theta = _theta((80 * _random(seed, 2, 6, 2)).tolist(), 0.1 + 0.3 * _random(seed + 9, 2, 6), 0.3, size)
        parts = (3 * _random(seed, 2, 6, 4, 13, 17)).masked_fill(to[:, :, None, None] < 0, -9)
        parts[:, :, 0] = 2 * _random(seed + 1, 2, 6, 13, 17)
        parts = parts.softmax(2)
        labels = paste_labels(parts, theta, size, to, mode)
        assert labels.dtype == torch.uint8
        assert labels.long().equal(self._by_argmax(parts, theta, size, to, mode))
        assert set(labels.unique().tolist()) == set(range(9))

    @pytest.mark.parametrize("name", SETS)
    def test_published(self, reference, name):
        parts = _one_hot_parts(reference[f"{name}_label_crops"], torch.float64)
        labels = paste_labels(parts, _reference_theta(reference, name), (150, 200), TO, mode="nearest")[0]
        assert torch.equal(labels.long(), torch.from_numpy(reference[f"{name}_pasteback"]).long().argmax(0))

    def test_background_wins_where_the_mass_is_small(self):
        """Three classes of 0.2 each leave 0.4 to the background; of 0.3 each, 0.1. Equal classes: the lowest."""
        theta = theta_from_centers(torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]]), (3, 3), (3, 5))
        parts = torch.tensor([0.2, 0.3]).view(2, 1, 1, 1, 1).expand(2, 1, 3, 3, 3)
        labels = paste_labels(parts, theta, (3, 5), torch.tensor([[3, 1, 2]]), "nearest")
        assert not labels[0].any()
        assert labels[1].tolist() == [[1, 1, 1, 0, 0]] * 3
        halves = torch.full((2, 1, 1, 3, 3), 0.5)
        assert not paste_labels(halves, theta, (3, 5), torch.tensor([[1]]), "nearest").any()

    def test_overlapping_windows_do_not_darken_each_other(self):
        """Either part's background says 0.55 to 0.45: two of them are no more foreground, or background, than one."""
        theta = theta_from_centers(torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]), (3, 3), (3, 3))
        parts = torch.tensor([0.45, 0.40]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 3, 3)
        assert not paste_labels(parts, theta, (3, 3), torch.tensor([[1], [2]])).any()
        assert (paste_labels(parts + 0.1, theta, (3, 3), torch.tensor([[1], [2]]), "nearest") == 1).all()


class TestRefuses:
    images, mask = torch.zeros(2, 3, 20, 30), torch.zeros(2, 20, 30, dtype=torch.int64)
    theta = theta_from_centers(torch.full((2, 1, 2), 9.0), (5, 5), (20, 30))
    parts, to = torch.zeros(2, 1, 2, 5, 5), torch.tensor([[-1, 1]])

    @pytest.mark.parametrize("window", [(21, 5), (5, 31)])
    def test_a_window_larger_than_the_image(self, window):
        message = rf"window of {window[0]} x {window[1]}.*20 x 30.*pad the image"
        with pytest.raises(ValueError, match=message):
            theta_from_centers(torch.zeros(2, 1, 2), window, (20, 30))
        with pytest.raises(ValueError, match=message):
            crop_parts(self.images, self.theta, window)
        with pytest.raises(ValueError, match=message):
            crop_labels(self.mask, self.theta, window, 0)
        with pytest.raises(ValueError, match=message):
            integer_crop(self.images, torch.zeros(2, 1, 2), window)

    def test_windows_and_images_of_one_pixel(self):
        with pytest.raises(ValueError, match="window of 1 x 5"):
            theta_from_centers(torch.zeros(1, 1, 2), (1, 5), (20, 30))
        with pytest.raises(ValueError, match=r"size 1 x 30.*no scale"):
            reframe_theta(self.theta, (20, 30), (1, 30))
        with pytest.raises(ValueError, match="size 20 x 1"):
            paste_parts(self.parts, self.theta, (20, 1), self.to)
        with pytest.raises(ValueError, match="windows of 1 x 5"):
            paste_parts(torch.zeros(2, 1, 2, 1, 5), self.theta, (20, 30), self.to)

    @pytest.mark.parametrize(
        "entry", [(0, 0, 0.0), (1, 1, -0.1), (0, 2, float("nan")), (1, 1, float("inf")), (0, 1, 0.1), (1, 0, 0.1)]
    )
    def test_a_theta_that_cannot_be_inverted(self, entry):
        theta = self.theta.clone()
        row, column, value = entry
        theta[1, 0, row, column] = value
        message = r"of image 1, part 0 cannot be inverted.*scales above 0"
        with pytest.raises(ValueError, match=message):
            crop_parts(self.images, theta, (5, 5))
        with pytest.raises(ValueError, match=message):
            crop_labels(self.mask, theta, (5, 5), 0)
        with pytest.raises(ValueError, match=message):
            paste_parts(self.parts, theta, (20, 30), self.to)
        with pytest.raises(ValueError, match=message):
            paste_labels(self.parts, theta, (20, 30), self.to)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"images of shape \(3, 20, 30\), expected \(N, C, H, W\)"):
            crop_parts(self.images[0], self.theta, (5, 5))
        with pytest.raises(ValueError, match=r"theta of shape \(1, 1, 2, 3\), expected \(2, P, 2, 3\)"):
            crop_parts(self.images, self.theta[:1], (5, 5))
        with pytest.raises(ValueError, match=r"theta of shape \(2, 1, 3, 2\)"):
            crop_parts(self.images, self.theta.mT, (5, 5))
        with pytest.raises(ValueError, match=r"mask of shape \(2, 1, 20, 30\)"):
            crop_labels(self.mask[:, None], self.theta, (5, 5), 0)
        with pytest.raises(ValueError, match=r"mask of torch.float32.*crop_parts"):
            crop_labels(self.mask.float(), self.theta, (5, 5), 0)
        with pytest.raises(ValueError, match=r"centers of shape \(2, 2\)"):
            theta_from_centers(torch.zeros(2, 2), (5, 5), (20, 30))
        with pytest.raises(ValueError, match=r"theta of shape \(1, 2, 3\)"):
            centers_from_theta(self.theta[0], (20, 30))
        with pytest.raises(ValueError, match=r"weights of shape \(2, 20, 30\)"):
            part_centers(self.mask)
        with pytest.raises(ValueError, match=r"centers of shape \(1, 1, 2\), expected \(2, P, 2\)"):
            integer_crop(self.images, torch.zeros(1, 1, 2), (5, 5))

    def test_centers_that_are_not_finite(self):
        with pytest.raises(ValueError, match="nan or inf"):
            integer_crop(self.images, torch.full((2, 1, 2), float("nan")), (5, 5))

    @pytest.mark.parametrize("own", [torch.tensor([[20, 30]]), torch.tensor([[20, 30], [1, 30]])])
    def test_own_sizes(self, own):
        with pytest.raises(ValueError, match=r"own sizes of shape .*expected \(2, 2\)"):
            reframe_theta(self.theta, own, (40, 40))

    def test_what_cannot_be_pasted(self):
        with pytest.raises(ValueError, match=r"parts of shape \(1, 2, 5, 5\)"):
            paste_parts(self.parts[0], self.theta, (20, 30), self.to)
        with pytest.raises(ValueError, match="1 parts, but 2 thetas"):
            paste_parts(self.parts, self.theta.repeat(1, 2, 1, 1), (20, 30), self.to)
        with pytest.raises(ValueError, match=r"shape \(2, 1\), expected int64, \(1, 2\)"):
            paste_parts(self.parts, self.theta, (20, 30), self.to.T)
        with pytest.raises(ValueError, match=r"to of torch.float32"):
            paste_parts(self.parts, self.theta, (20, 30), self.to.float())
        with pytest.raises(ValueError, match=r"channels -2\.\.1"):
            paste_parts(self.parts, self.theta, (20, 30), torch.tensor([[-2, 1]]))
        with pytest.raises(ValueError, match=r"channels -1\.\.-1.*one of 0 or more"):
            paste_parts(self.parts, self.theta, (20, 30), torch.tensor([[-1, -1]]))
        with pytest.raises(ValueError, match=r"channels -1\.\.0.*one of 1 or more"):
            paste_labels(self.parts, self.theta, (20, 30), torch.tensor([[-1, 0]]))
        with pytest.raises(ValueError, match=r"channels 1\.\.256.*up to 255"):
            paste_labels(self.parts, self.theta, (20, 30), torch.tensor([[1, 256]]))
