"""The consensus loss: by hand, against the published code's values, extremes, invalid input."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from structseg.losses import ConsensusLoss, consensus_loss

PUBLISHED = {"idx": "blob", "all": "image"}
LONG = {"dtype": torch.long}


def by_hand(logits, target, blobs, alpha=10.0, beta=5.0):
    """Equation 8 as it is written, one blob at a time."""
    terms = []
    for x, labels, ids in zip(logits, target, blobs, strict=True):
        for blob in ids[labels != 255].unique():
            inside = (ids == blob) & (labels != 255)
            p = x[:, inside].softmax(0)
            t = p.mean(1)
            label = -t[labels[inside][0]].log()
            terms.append(alpha * label + beta * (t[:, None] * (t[:, None].log() - p.log())).sum(0).mean())
    return torch.stack(terms).mean()


def random_case(n=2, c=3, h=5, w=7, seed=0, dtype=torch.float64, ignored=True):
    """Logits, targets with some ignored pixels, and blobs finer than the labels."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, h, w, generator=rng, dtype=dtype)
    target = torch.randint(0, c, (n, h, w), generator=rng)
    blobs = 2 * target + torch.randint(0, 2, (n, h, w), generator=rng)
    if ignored:
        target[0, 0, :3] = 255
    return logits, target, blobs


class TestPublished:
    def test_all_45_vectors_in_both_normalisations(self, golden):
        files = sorted(golden.glob("consensus_*.npz"))
        assert len(files) == 45
        readings = 0
        for file in files:
            case = np.load(file, allow_pickle=False)
            reductions = [PUBLISHED[str(case[key])] for key in ("reduce_pixel", "reduce_pixel_kl")]
            logits, target, blobs = (torch.from_numpy(case[key]) for key in ("logits", "target", "blobs"))
            logits.requires_grad_()
            alpha, beta = float(case["alpha"]), float(case["beta"])
            loss = consensus_loss(logits, target, blobs, alpha, beta, "published", *reductions)
            (grad,) = torch.autograd.grad(loss, logits)
            assert abs(loss.item() - float(case["loss"])) < 1e-10, file.name
            assert np.abs(grad.numpy() - case["grad_closed"]).max() < 1e-10, file.name
            private = "unique" in file.name or "_n1_" in file.name
            if private and reductions == ["blob", "blob"] and "underflow" not in file.name:
                n, c = logits.shape[:2]
                expected = alpha * n * float(case["nll_mean"]) + beta * c * float(case["kl_mean"])
                assert consensus_loss(logits, target, blobs, alpha, beta).item() == pytest.approx(expected, abs=1e-10)
                readings += 1
        assert readings == 8

    def test_float32_stays_within_1e_5(self, golden):
        for file in sorted(golden.glob("consensus_*.npz")):
            case = np.load(file, allow_pickle=False)
            if "underflow" in file.name:
                continue  # other probabilities underflow in float32
            reductions = [PUBLISHED[str(case[key])] for key in ("reduce_pixel", "reduce_pixel_kl")]
            logits, target, blobs = (torch.from_numpy(case[key]) for key in ("logits", "target", "blobs"))
            loss = consensus_loss(
                logits.float(), target, blobs, float(case["alpha"]), float(case["beta"]), "published", *reductions
            )
            assert float(loss) == pytest.approx(float(case["loss"]), rel=1e-5, abs=1e-5), file.name


class TestByHand:
    def test_one_blob_of_two_pixels(self):
        # p = (3/4, 1/4) and (1/4, 3/4): t = (1/2, 1/2), -log t = log 2, KL = log(1/2) - log(3/16) / 2.
        logits = torch.tensor([[[[3.0, 1.0]], [[1.0, 3.0]]]]).log()
        target = torch.zeros(1, 1, 2, **LONG)
        kl = math.log(0.5) - math.log(3 / 16) / 2
        assert float(consensus_loss(logits, target)) == pytest.approx(10 * math.log(2) + 5 * kl)
        assert float(consensus_loss(logits, target, alpha=0, beta=1)) == pytest.approx(kl)
        # published: the same label term for one image, the other divided by the 2 classes
        assert float(consensus_loss(logits, target, normalization="published")) == pytest.approx(
            10 * math.log(2) + 5 * kl / 2
        )

    @pytest.mark.parametrize("seed", range(3))
    def test_random_blobs(self, seed):
        logits, target, blobs = random_case(seed=seed)
        logits.requires_grad_()
        expected = by_hand(logits, target, blobs)
        loss = consensus_loss(logits, target, blobs)
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)
        grads = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)

    def test_the_labels_are_the_blobs_by_default(self):
        logits, target, _ = random_case()
        assert float(consensus_loss(logits, target)) == pytest.approx(float(by_hand(logits, target, target)), rel=1e-12)

    def test_reduction_by_image(self):
        # one blob of 2 of the 4 pixels, p = 1/2 everywhere: t = 2/4 * 1/2 = 1/4; KL = 2 * t * log(t / (1/2)) a pixel
        logits, target = torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 0], [255, 255]]])
        assert float(consensus_loss(logits, target, alpha=1, beta=0, label_reduction="image")) == pytest.approx(
            math.log(4)
        )
        both = {"label_reduction": "image", "consensus_reduction": "image"}
        assert float(consensus_loss(logits, target, alpha=0, beta=1, **both)) == pytest.approx(
            2 * (2 * 0.25 * math.log(0.5)) / 4
        )
        logits = torch.tensor([[[[3.0, 1.0], [1, 1]], [[1.0, 3.0], [1, 1]]]]).log()
        kl = math.log(0.5) - math.log(3 / 16) / 2
        loss = consensus_loss(logits, target, alpha=0, beta=1, consensus_reduction="image")
        assert float(loss) == pytest.approx(2 * kl / 4)

    def test_blobs_weighted_by_size(self):
        logits, target, blobs = random_case()
        single, pixels = [], []
        for image, labels, ids in zip(logits, target, blobs, strict=True):
            for blob in ids[labels != 255].unique():
                only = labels.masked_fill(ids != blob, 255)
                single.append(by_hand(image[None], only[None], ids[None]))
                pixels.append(int((only != 255).sum()))
        expected = float((torch.stack(single) * torch.tensor(pixels)).sum() / sum(pixels))
        assert float(consensus_loss(logits, target, blobs, blob_weight="size")) == pytest.approx(expected, rel=1e-12)
        one_pixel = torch.arange(35).view(1, 5, 7).expand(2, -1, -1)
        assert float(ConsensusLoss(blob_weight="size")(logits, target, one_pixel)) == pytest.approx(
            10 * float(F.cross_entropy(logits, target, ignore_index=255))
        )

    def test_soft_targets(self):
        """One-hot targets equal hard ones; the label term is the cross-entropy of the blob's mean prediction and target."""
        logits, target, blobs = random_case(ignored=False)
        soft = F.one_hot(target, 3).movedim(-1, 1).double()
        for regions in (None, blobs):
            assert float(consensus_loss(logits, soft, regions)) == pytest.approx(
                float(consensus_loss(logits, target, regions)), rel=1e-12
            )
        logits = torch.tensor([[[[3.0, 1.0]], [[1.0, 3.0]]]]).log()
        soft = torch.tensor([[[[0.8, 0.6]], [[0.2, 0.4]]]])
        assert float(consensus_loss(logits, soft, alpha=1, beta=0)) == pytest.approx(math.log(2))
        logits = torch.tensor([[[[3.0, 3.0]], [[1.0, 1.0]]]]).log()
        expected = -0.7 * math.log(0.75) - 0.3 * math.log(0.25)
        assert float(consensus_loss(logits, soft, alpha=1, beta=1)) == pytest.approx(expected)

    def test_soft_pixels_without_a_class_are_ignored(self):
        logits, target, blobs = random_case()
        soft = F.one_hot(target.masked_fill(target == 255, 0), 3).movedim(-1, 1) * (target != 255)[:, None].double()
        logits.requires_grad_()
        for regions in (None, blobs):
            values = [consensus_loss(logits, labels, regions) for labels in (soft, target)]
            assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
            torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values))

    def test_a_soft_target_is_a_constant(self):
        logits, target, _ = random_case(ignored=False)
        soft = F.one_hot(target, 3).movedim(-1, 1).double().requires_grad_()
        loss = consensus_loss(logits.requires_grad_(), soft)
        assert torch.autograd.grad(loss, soft, allow_unused=True)[0] is None

    def test_published_pools_an_id_over_images(self):
        logits, target, _ = random_case(ignored=False)
        shared = consensus_loss(logits, target, target, normalization="published")
        apart = consensus_loss(logits, target, target + 3 * torch.arange(2).view(2, 1, 1), normalization="published")
        assert float(shared) != pytest.approx(float(apart))
        blob = consensus_loss(logits, target, target + 3 * torch.arange(2).view(2, 1, 1))
        assert float(blob) == pytest.approx(float(consensus_loss(logits, target, target)), rel=1e-12)


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10**6), st.sampled_from(["blob", "published"]), st.integers(0, 10**6))
    def test_renaming_blobs_changes_nothing(self, seed, normalization, offset):
        logits, target, blobs = random_case(seed=seed)
        names = torch.randperm(8, generator=torch.Generator().manual_seed(seed)) * 7 + offset
        first, second = (consensus_loss(logits, target, b, normalization=normalization) for b in (blobs, names[blobs]))
        assert float(first) == pytest.approx(float(second), rel=1e-12)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6))
    def test_a_batch_is_the_blob_weighted_mean_of_its_images(self, seed):
        logits, target, blobs = random_case(n=3, seed=seed)
        counts = torch.tensor([len(b[t != 255].unique()) for b, t in zip(blobs, target, strict=True)])
        alone = torch.stack([consensus_loss(logits[i : i + 1], target[i : i + 1], blobs[i : i + 1]) for i in range(3)])
        expected = (alone * counts).sum() / counts.sum()
        assert float(consensus_loss(logits, target, blobs)) == pytest.approx(float(expected), rel=1e-12)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.floats(0, 20))
    def test_single_pixels_without_beta_are_cross_entropy(self, seed, alpha):
        logits, target, _ = random_case(seed=seed)
        pixels = torch.arange(35).view(1, 5, 7).expand(2, -1, -1)
        expected = alpha * float(F.cross_entropy(logits, target, ignore_index=255))
        for beta in (0.0, 5.0):  # a pixel agrees with itself
            assert float(consensus_loss(logits, target, pixels, alpha, beta)) == pytest.approx(expected, abs=1e-10)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6))
    def test_the_consensus_term_is_0_only_for_equal_predictions(self, seed):
        logits, target, blobs = random_case(seed=seed)
        assert float(consensus_loss(logits, target, blobs, alpha=0)) > 0
        flat = logits[:, :, :1, :1].expand_as(logits)
        assert float(consensus_loss(flat, target, blobs, alpha=0)) == pytest.approx(0, abs=1e-12)


class TestGradients:
    @pytest.mark.parametrize("normalization", ["blob", "published"])
    @pytest.mark.parametrize("label", ["blob", "image"])
    @pytest.mark.parametrize("consensus", ["blob", "image"])
    def test_first_and_second(self, normalization, label, consensus):
        logits, target, blobs = random_case(h=3, w=4)
        logits.requires_grad_()

        def loss(x):
            return consensus_loss(x, target, blobs, 10, 5, normalization, label, consensus)

        assert torch.autograd.gradcheck(loss, (logits,))
        assert torch.autograd.gradgradcheck(loss, (logits,))

    def test_of_soft_targets(self):
        logits, _, blobs = random_case(h=3, w=4)
        soft = random_case(h=3, w=4, seed=1)[0].softmax(1)
        logits.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: consensus_loss(x, soft, blobs), (logits,))

    def test_of_blobs_weighted_by_size(self):
        logits, target, blobs = random_case(h=3, w=4)
        logits.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: consensus_loss(x, target, blobs, blob_weight="size"), (logits,))

    def test_scales_with_the_outer_gradient(self):
        logits, target, blobs = random_case()
        logits.requires_grad_()
        one = torch.autograd.grad(consensus_loss(logits, target, blobs), logits)[0]
        three = torch.autograd.grad(3 * consensus_loss(logits, target, blobs), logits)[0]
        torch.testing.assert_close(three, 3 * one)

    def test_ignored_pixels_have_none(self):
        logits, target, blobs = random_case()
        grad = torch.autograd.grad(consensus_loss(logits.requires_grad_(), target, blobs), logits)[0]
        assert (grad[0, :, 0, :3] == 0).all()
        assert (grad[1].abs().sum(0) > 0).all()


class TestExtremes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("scale", [1e4, 1e3, 100.0])
    @pytest.mark.parametrize("normalization", ["blob", "published"])
    def test_large_logits(self, dtype, scale, normalization):
        logits, target, blobs = random_case(dtype=dtype)
        logits = (logits.sign() * scale).requires_grad_()
        loss = consensus_loss(logits, target, blobs, normalization=normalization)
        grad = torch.autograd.grad(loss, logits)[0]
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()

    def test_a_blob_whose_probability_underflows_has_a_gradient(self):
        """Value and gradient are alpha times those of cross-entropy."""
        logits = torch.tensor([[[[0.0, 0.0]], [[1e4, 1e4]]]]).requires_grad_()
        target = torch.zeros(1, 1, 2, **LONG)
        for blobs, validate in ((None, True), (target, True), (target, False)):
            loss = consensus_loss(logits, target, blobs, validate=validate)
            assert float(loss) == pytest.approx(1e5)
            grad = torch.autograd.grad(loss, logits)[0]
            torch.testing.assert_close(grad, torch.tensor([[[[-5.0, -5.0]], [[5.0, 5.0]]]]))

    def test_one_correct_pixel_in_a_blob_that_underflows(self):
        logits = torch.tensor([[[[0.0, 0.0, 50.0]], [[1e4, 1e4, 50.0]]]]).requires_grad_()
        loss = consensus_loss(logits, torch.zeros(1, 1, 3, **LONG), alpha=1, beta=0)
        assert float(loss) == pytest.approx(math.log(6))

    @pytest.mark.parametrize("gap", [43.0, 86.5, 90.0, 200.0, 1e4])
    def test_a_confident_teacher_and_a_wrong_student(self, gap):
        """Soft targets: value and gradient are those of cross-entropy for any distance of the two."""
        logits = torch.tensor([0.0, gap]).view(1, 2, 1, 1).requires_grad_()
        for first in (1.0, 0.9):
            soft = torch.tensor([first, 1 - first]).view(1, 2, 1, 1)
            loss = consensus_loss(logits, soft)
            expected = 10 * F.cross_entropy(logits, soft)
            assert float(loss) == pytest.approx(float(expected), rel=1e-6)
            grads = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
            torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)

    def test_second_derivative_where_the_probability_is_tiny(self):
        for target in (torch.zeros(1, 1, 1, **LONG), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)):
            logits = torch.tensor([0.0, 45.0]).view(1, 2, 1, 1).requires_grad_()
            (grad,) = torch.autograd.grad(consensus_loss(logits, target), logits, create_graph=True)
            (second,) = torch.autograd.grad(grad.pow(2).sum(), logits)
            assert torch.isfinite(second).all()

    def test_a_large_factor_outside_does_not_overflow(self):
        logits = torch.tensor([0.0, 73.0]).view(1, 2, 1, 1).requires_grad_()
        loss = consensus_loss(logits, torch.zeros(1, 1, 1, **LONG), alpha=1000.0)
        (grad,) = torch.autograd.grad(loss, logits, torch.tensor(65536.0))
        torch.testing.assert_close(grad.flatten(), torch.tensor([-65536e3, 65536e3]))

    def test_a_tiny_mean_over_a_large_image(self):
        logits = torch.zeros(1, 2, 2048, 2048)
        logits[0, 1, 0, 0] = 72.5
        target = torch.full((1, 2048, 2048), 255)
        target[0, 0, 0] = 0
        logits.requires_grad_()
        loss = consensus_loss(logits, target, None, 1.0, 0.0, label_reduction="image")
        assert float(loss) == pytest.approx(72.5 + math.log(2048**2), rel=1e-5)
        grad = torch.autograd.grad(loss, logits)[0][0, :, 0, 0]
        torch.testing.assert_close(grad, torch.tensor([-1.0, 1.0]))

    def test_nothing_but_ignored_pixels(self):
        logits = torch.randn(2, 3, 4, 4, requires_grad=True)
        target = torch.full((2, 4, 4), 255)
        for blobs in (None, torch.zeros(2, 4, 4, **LONG)):
            for normalization in ("blob", "published"):
                loss = consensus_loss(logits, target, blobs, normalization=normalization)
                grad = torch.autograd.grad(loss, logits)[0]
                assert float(loss) == 0
                assert (grad == 0).all()

    def test_one_ignored_image_in_a_batch_changes_nothing(self):
        logits, target, blobs = random_case()
        alone = consensus_loss(logits[1:], target[1:], blobs[1:])
        target[0] = 255
        assert float(consensus_loss(logits, target, blobs)) == pytest.approx(float(alone), rel=1e-12)

    def test_ids_of_ignored_pixels_do_not_matter(self):
        logits, target, blobs = random_case()
        first = consensus_loss(logits, target, blobs)
        blobs[target == 255] = -7
        assert float(consensus_loss(logits, target, blobs)) == float(first)

    def test_another_ignore_index(self):
        logits, target, blobs = random_case()
        first = consensus_loss(logits, target, blobs)
        target[target == 255] = -1
        assert float(consensus_loss(logits, target, blobs, ignore_index=-1)) == float(first)

    def test_an_ignore_index_that_is_a_class(self):
        logits, target, _ = random_case(ignored=False)
        other = target.masked_fill(target == 0, 255)
        assert float(consensus_loss(logits, target, ignore_index=0)) == float(consensus_loss(logits, other))

    def test_one_pixel_and_one_class(self):
        assert float(consensus_loss(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, **LONG))) == 0

    @pytest.mark.parametrize("sparse", [10**12, 36])
    def test_ids_of_any_size(self, sparse):
        logits, target, blobs = random_case()
        for normalization in ("blob", "published"):
            first, second = (
                consensus_loss(logits, target, b, normalization=normalization) for b in (blobs, blobs * sparse)
            )
            assert float(first) == pytest.approx(float(second), rel=1e-12)

    @pytest.mark.parametrize("case", ["dense", "one large id", "an ignored large id", "odd size"])
    def test_float32_loses_no_digits_in_large_blobs(self, case):
        """A plain float32 sum of a quarter of a million equal numbers would be wrong by half a percent."""
        h, w = (509, 503) if case == "odd size" else (512, 512)
        logits = torch.tensor([0.3, -1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, h, w)
        target, blobs = torch.zeros(1, h, w, **LONG), torch.zeros(1, h, w, **LONG)
        if "large" in case:
            blobs[0, 0, 0] = h * w - 5
        if "ignored" in case:
            target[0, 0, 0] = 255
        expected = float(-logits[0, :, 0, 0].log_softmax(0)[0])
        assert float(consensus_loss(logits, target, blobs, 1, 0)) == pytest.approx(expected, rel=2e-5)
        assert float(consensus_loss(logits, target, blobs, 0, 1)) == pytest.approx(0, abs=3e-5)


class TestForms:
    def test_axis_for_the_single_channel(self):
        logits, target, blobs = random_case()
        plain = consensus_loss(logits, target, blobs)
        for t, b in ((target[:, None], blobs[:, None]), (target[:, None], blobs), (target, blobs[:, None])):
            assert float(consensus_loss(logits, t, b)) == float(plain)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_integer_types(self, dtype):
        logits, target, blobs = random_case()
        plain = consensus_loss(logits, target, blobs)
        assert float(consensus_loss(logits, target.to(dtype), blobs.to(dtype))) == float(plain)

    def test_memory_formats(self):
        logits, target, blobs = random_case()
        plain = consensus_loss(logits, target, blobs)
        last = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
        loss = consensus_loss(last, target.transpose(1, 2).contiguous().transpose(1, 2), blobs)
        assert float(loss) == pytest.approx(float(plain), rel=1e-14)
        loss.backward()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_summed_in_float32(self, dtype):
        logits, target, blobs = random_case(h=32, w=32, dtype=torch.float32)
        half = logits.to(dtype).requires_grad_()
        expected = consensus_loss(half.detach().float().requires_grad_(), target, blobs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = consensus_loss(half, target, blobs)
        assert loss.dtype == torch.float32
        assert float(loss) == float(expected)
        loss.backward()
        assert half.grad.dtype == dtype

    def test_module_equals_function(self):
        logits, target, blobs = random_case()
        module = ConsensusLoss(3, 2, "published", "image", "blob", validate=False)
        expected = consensus_loss(logits, target, blobs, 3, 2, "published", "image", "blob")
        assert float(module(logits, target, blobs)) == float(expected)
        assert "alpha=3, beta=2" in repr(module)

    def test_the_loss_may_be_changed_in_place(self):
        logits, target, blobs = random_case()
        loss = consensus_loss(logits.requires_grad_(), target, blobs)
        loss /= 2
        loss.backward()
        half = torch.autograd.grad(consensus_loss(logits, target, blobs) / 2, logits)[0]
        torch.testing.assert_close(logits.grad, half)

    @pytest.mark.parametrize("changed", ["logits", "target", "blobs"])
    def test_an_in_place_change_before_the_backward_pass_is_noticed(self, changed):
        leaf, target, _ = random_case(h=16, w=16, ignored=False)
        given = {"logits": leaf.requires_grad_() * 1, "target": target, "blobs": target.clone()}
        loss = consensus_loss(**given)
        with torch.no_grad():
            given[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_without_gradient(self):
        logits, target, blobs = random_case()
        with torch.no_grad():
            loss = consensus_loss(logits.requires_grad_(), target, blobs)
        assert not loss.requires_grad

    @pytest.mark.slow
    def test_compiled(self):
        logits, target, blobs = random_case(dtype=torch.float32, h=8, w=8)
        compiled = torch.compile(consensus_loss, fullgraph=True)
        grads = []
        for function in (consensus_loss, compiled):
            leaf = logits.clone().requires_grad_()
            loss = function(leaf, target, blobs)
            loss.backward()
            grads.append((loss.detach(), leaf.grad))
        torch.testing.assert_close(grads[0], grads[1])


class TestBadInput:
    @pytest.mark.parametrize(
        ("logits", "target", "blobs", "error", "said"),
        [
            ((2, 3, 4), (2, 4), None, ValueError, r"logits are \(2, 3, 4\)"),
            ((2, 3, 4, 4), (2, 4, 5), None, ValueError, r"target is \(2, 4, 5\); \(2, 4, 4\) or \(2, 1, 4, 4\) fit"),
            ((2, 3, 4, 4), (1, 4, 4), None, ValueError, r"target is \(1, 4, 4\)"),
            ((2, 3, 4, 4), (2, 4, 4), (1, 4, 4), ValueError, r"blobs is \(1, 4, 4\)"),
            ((2, 3, 4, 4), (2, 3, 4, 4), None, ValueError, r"target is \(2, 3, 4, 4\); \(2, 4, 4\)"),
            ((2, 0, 4, 4), (2, 4, 4), None, ValueError, "at least one image, class and"),
            ((0, 3, 4, 4), (0, 4, 4), None, ValueError, "at least one image, class and"),
        ],
    )
    def test_shapes(self, logits, target, blobs, error, said):
        blobs = None if blobs is None else torch.zeros(blobs, **LONG)
        with pytest.raises(error, match=said):
            consensus_loss(torch.zeros(logits), torch.zeros(target, **LONG), blobs)

    def test_types(self):
        logits, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, **LONG)
        with pytest.raises(ValueError, match=r"logits are .* torch.int64; \(N, C, H, W\) of a float type"):
            consensus_loss(logits.long(), target)
        with pytest.raises(TypeError, match=r"blobs has dtype torch.float32; integers"):
            consensus_loss(logits, target, target.float())
        with pytest.raises(TypeError, match=r"target has dtype torch.bool; integers"):
            consensus_loss(logits, target.bool())
        with pytest.raises(TypeError, match="target is a ndarray; a"):
            consensus_loss(logits, np.zeros((1, 2, 2), int))
        with pytest.raises(ValueError, match=r"target is \(1, 2, 2\) torch.float32; class indices .* or probabilities"):
            consensus_loss(logits, target.float())

    def test_devices(self):
        logits, target = torch.zeros(1, 2, 2, 2, device="meta"), torch.zeros(1, 2, 2, **LONG)
        with pytest.raises(ValueError, match="target is on cpu, the logits on meta"):
            consensus_loss(logits, target)

    def test_a_blob_with_two_labels(self):
        target = torch.zeros(2, 2, 3, **LONG)
        target[1, 1, 2] = 2
        blobs = torch.full((2, 2, 3), 4)
        with pytest.raises(ValueError, match=r"blob 4 of b.png holds labels [02] and [02]; a blob has one label"):
            consensus_loss(torch.zeros(2, 3, 2, 3), target, blobs, names=["a.png", "b.png"])
        with pytest.raises(ValueError, match="blob 4 of image 1 of the batch"):
            consensus_loss(torch.zeros(2, 3, 2, 3), target, blobs)
        with pytest.raises(ValueError, match=r"blob 4000 of b\.png"):
            consensus_loss(torch.zeros(2, 3, 2, 3), target, blobs * 1000, names=["a.png", "b.png"])

    def test_values(self):
        logits, target = torch.zeros(2, 3, 2, 2), torch.zeros(2, 2, 2, **LONG)
        for value, ignored in ((3, 0), (3, 255), (-1, 0), (-1, 255), (254, 255)):
            wrong = target.clone()
            wrong[1, 0, 1] = value
            wrong[0, 0, 0] = ignored
            for blobs in (None, wrong.abs()):
                with pytest.raises(ValueError, match=rf"target of image 1 of the batch holds {value}; .* 0..2 or"):
                    consensus_loss(logits, wrong, blobs)
        with pytest.raises(ValueError, match="blobs of image 0 of the batch holds -1; expected ids from 0"):
            consensus_loss(logits, target, target - 1)

    def test_one_id_with_a_label_in_each_image(self):
        logits, blobs = torch.zeros(2, 2, 2, 2), torch.zeros(2, 2, 2, **LONG)
        target = blobs + torch.tensor([0, 1]).view(2, 1, 1)
        assert float(consensus_loss(logits, target, blobs)) == pytest.approx(10 * math.log(2))
        with pytest.raises(ValueError, match=r"blob 0 has label 0 in a and 1 in b; with the published normalization"):
            consensus_loss(logits, target, blobs, normalization="published", names=["a", "b"])

    @pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 7.0])
    def test_soft_targets_that_are_no_probabilities(self, value):
        soft = torch.full((1, 3, 4, 4), 1 / 3)
        soft[0, 1, 2, 3] = value
        with pytest.raises(ValueError, match=rf"target of x holds {value:g} \(class 1, row 2, column 3\)"):
            consensus_loss(torch.zeros(1, 3, 4, 4), soft, names=["x"])

    @pytest.mark.parametrize("normalization", ["blob", "published"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_logits_that_are_not_finite(self, value, normalization):
        logits, target, blobs = random_case()
        logits[1, 2, 3, 4] = value
        with pytest.raises(ValueError, match=rf"logits of y hold {value} \(class 2, row 3, column 4\)"):
            consensus_loss(logits, target, blobs, normalization=normalization, names=["x", "y"])

    def test_logits_that_are_not_finite_where_nothing_counts(self):
        logits, target, blobs = random_case()
        logits[0, 0, 0, 0] = math.nan
        assert int(target[0, 0, 0]) == 255
        with pytest.raises(ValueError, match="logits of image 0 of the batch hold nan"):
            consensus_loss(logits, target, blobs)

    def test_settings(self):
        with pytest.raises(ValueError, match=r"alpha=-1 .*, beta=inf .*, normalization='idx' \(blob or published\)"):
            ConsensusLoss(-1, math.inf, "idx")
        with pytest.raises(ValueError, match="consensus_reduction='all'"):
            ConsensusLoss(consensus_reduction="all")
        with pytest.raises(ValueError, match="normalization='publish'"):
            consensus_loss(*random_case(), normalization="publish")
        with pytest.raises(ValueError, match="blob_weight='size' with normalization='published'"):
            ConsensusLoss(normalization="published", blob_weight="size")
