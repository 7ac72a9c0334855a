import copy

import pytest
import torch
from torch import nn

from structseg.lightning_modules.networks.icnn import ICNN

FORMS = ("published", "paper")


def _awake(classes, form):
    """A network whose norms fit its random kernels, so that what enters comes out; black stays zero to the head."""
    torch.manual_seed(0)
    network = ICNN(classes, form)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.rand(2, 3, 64, 64))
    for norm in norms:
        norm.running_mean.zero_()
    return network.eval()


# Kernel weights by row, then the scale and shift of the norms; the last two convolutions have a bias instead.
# inputs        3 * (8 + 16 + 24 + 32) = 240
# interlinked   24*8 + 8*8, 48*16 + 16*16, 72*24 + 24*24, 56*32 + 32*32 = 256 + 1024 + 2304 + 2816 = 6400, three times
# merging       24*8 + 40*16 + 56*24 = 2176
# head          8*(2L+8), (2L+8)*L; the last, L*L, has the larger kernel
# norms         2 * (80 + 3*2*80 + 48 + 2L+8); biases 2L
@pytest.mark.parametrize(("form", "classes", "parameters"), [
    ("published", 9, 25 * (240 + 3 * 6400 + 2176 + 8 * 26 + 26 * 9) + 81 * 81 + 2 * (608 + 26) + 18),
    ("published", 2, 25 * (240 + 3 * 6400 + 2176 + 8 * 12 + 12 * 2) + 81 * 4 + 2 * (608 + 12) + 4),
    ("paper", 9, 9 * (240 + 3 * 6400 + 2176 + 8 * 26 + 26 * 9 + 81) + 2 * (608 + 26) + 18),
])  # fmt: skip
def test_parameters_are_those_counted_by_hand(form, classes, parameters):
    assert sum(p.numel() for p in ICNN(classes, form).parameters()) == parameters


def test_kernels_and_activations_of_the_forms():
    published, paper = ICNN(9), ICNN(9, "paper")
    kernels = [[m.kernel_size[0] for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (published, paper)]
    assert kernels == [32 * [5] + [5, 9], 34 * [3]]
    tanhs = [sum(isinstance(m, nn.Tanh) for m in net.modules()) for net in (published, paper)]
    relus = [sum(isinstance(m, nn.ReLU) for m in net.modules()) for net in (published, paper)]
    assert tanhs == [4 + 3 + 1, 0]
    assert relus == [3 * 4 * 2, 32]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(8, 8), (9, 15), (65, 33), (81, 81), (17, 127)])
def test_logits_have_the_images_size(form, size):
    network = _awake(3, form).double()  # one image and a batch take other kernels, which in float32 differ by 1e-5
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    logits = network(image)
    assert logits.shape == (2, 3, *size)
    torch.testing.assert_close(network(image[1:]), logits[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_gradient(form):
    network = ICNN(3, form)
    network(torch.rand(2, 3, 32, 24)).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_takes_from_itself_and_its_neighbours_only(form):
    layer = ICNN(2, form).eval().interlinked[1]
    rows = [torch.rand(1, width, size, size) for width, size in ((8, 32), (16, 16), (24, 8), (32, 4))]
    before = layer(rows)
    reached = []
    for source in range(4):
        changed = [row + (index == source) for index, row in enumerate(rows)]
        after = layer(changed)
        reached.append([not torch.equal(old, new) for old, new in zip(before, after, strict=True)])
    assert reached == [[abs(source - row) <= 1 for row in range(4)] for source in range(4)]


def test_a_layer_joins_finer_own_and_coarser_features_in_that_order():
    layer = ICNN(2, "paper").interlinked[0]
    seen = []
    layer.rows[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    finer, own, coarser, last = (
        torch.randn(1, width, *size) for width, size in ((8, (5, 7)), (16, (3, 4)), (24, (2, 2)), (32, (1, 1)))
    )
    layer.eval()([finer, own, coarser, last])
    assert seen[0].shape == (1, 48, 3, 4)
    torch.testing.assert_close(seen[0][0, :8, 1, 2], finer[0, :, 2:4, 4:6].amax((1, 2)))
    torch.testing.assert_close(seen[0][0, :8, 2, 3], finer[0, :, 4, 6])  # what is left at an odd border
    assert torch.equal(seen[0][0, 8:24], own[0])
    assert torch.equal(seen[0][0, 24:], coarser[0][:, [0, 0, 1]][:, :, [0, 0, 1, 1]])


@pytest.mark.parametrize("form", FORMS)
def test_merging_runs_from_coarse_to_fine(form):
    network = ICNN(2, form).eval()
    seen = []
    for index, layer in enumerate(network.merging):
        layer.register_forward_pre_hook(lambda _, x, i=index: seen.append((i, *x[0].shape[1:])))
    network(torch.rand(1, 3, 17, 16))
    assert seen == [(2, 24 + 32, 5, 4), (1, 16 + 24, 9, 8), (0, 8 + 16, 17, 16)]


@pytest.mark.parametrize(("form", "reach"), [("published", 2 * 8 + 2 + 2 + 4), ("paper", 8 + 3)])
def test_the_coarser_rows_see_further_than_the_finest_alone(form, reach):
    network = ICNN(2, form).eval()
    image = torch.rand(1, 3, 64, 64)
    moved = image.clone()
    moved[0, :, 0, 0] += 1
    with torch.no_grad():
        change = (network(moved) - network(image)).abs().amax((0, 1))
    assert change[reach + 8 :, reach + 8 :].max() > 0


# The published form's coarsest row sees 200 pixels and more: something is cut off at the frame.
@pytest.mark.parametrize(("form", "share"), [("published", 0.2), ("paper", 1e-4)])
def test_a_shift_by_the_coarsest_stride_shifts_the_logits(form, share):
    network = _awake(2, form)
    # On black, where no layer answers anything.
    pictures = torch.zeros(3, 3, 112, 112)
    patch = torch.rand(3, 16, 16)
    for picture, top in zip(pictures, (48, 56, 52), strict=True):
        picture[:, top : top + 16, 48:64] = patch
    with torch.no_grad():
        here, there, between = network(pictures)
    here = here[:, 48:64, 48:64]
    alike, unlike = (there[:, 56:72, 48:64] - here).abs().max(), (between[:, 52:68, 48:64] - here).abs().max()
    assert alike < share * unlike, "by half that stride the coarsest row sees another picture"


def test_mirrored_kernels_answer_a_mirrored_image_with_mirrored_logits():
    network = _awake(3, "paper")
    mirrored = copy.deepcopy(network)
    for module in mirrored.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.flip(-1)
    image = torch.rand(1, 3, 24, 32)
    logits = network(image)
    assert (mirrored(image.flip(-1)) - logits.flip(-1)).abs().max() < 1e-4 * logits.std()
    assert (network(image.flip(-1)) - logits.flip(-1)).abs().max() > 1e-2 * logits.std()


@pytest.mark.parametrize("form", FORMS)
def test_trains_under_bfloat16(form):
    network = ICNN(3, form)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(2, 3, 17, 16))
    logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 7, 40), (1, 3, 40, 7), (1, 1, 16, 16), (3, 16, 16)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"image \(.*\), but ICNN takes \(N, 3, H, W\) with H and W of 8 or more"):
        ICNN(2)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("classes", "form", "channels"), [(0, "paper", (8, 8)), (2, "other", (8, 8)), (2, "paper", (8,))]
)
def test_settings_that_do_not_exist(classes, form, channels):
    with pytest.raises(ValueError, match="expected published or paper"):
        ICNN(classes, form, channels)
