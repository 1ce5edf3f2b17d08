import numpy as np
import pytest
import torch

from compression.tasks.images import cutout, normalize, random_crop, random_flip


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def seeded():
    return torch.Generator().manual_seed(5)


def test_normalise_scales_each_channel_to_its_mean_and_deviation(images):
    x = normalize(images, mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.25))
    assert x.dtype == torch.float32
    assert x[3, 1, 2, 4].item() == pytest.approx((images[3, 1, 2, 4].item() / 255 - 0.4) / 0.1, rel=1e-5)
    assert x[3, 2, 2, 4].item() == pytest.approx((images[3, 2, 2, 4].item() / 255 - 0.3) / 0.25, rel=1e-5)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others(images):
    flipped = random_flip(images, seeded())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 20 < sum(mirrored) < 44


def test_shift_cuts_each_image_out_of_its_zero_padded_self(images):
    shifted, generator = random_crop(images, 4, seeded()), seeded()
    corners = torch.randint(0, 9, (2, len(images)), generator=generator)
    for i, (top, left) in enumerate(corners.T.tolist()):
        padded = np.pad(images[i].numpy(), ((0, 0), (4, 4), (4, 4)))
        np.testing.assert_array_equal(shifted[i].numpy(), padded[:, top : top + 12, left : left + 10])
    assert {tuple(c) for c in corners.T.tolist()} > {(0, 8)}  # both ends occur


def test_cutout_covers_a_square_with_the_mean_colour(images):
    covered, generator = cutout(images, 5, seeded()), seeded()
    rows, columns = (torch.randint(0, side, (len(images),), generator=generator).tolist() for side in (12, 10))
    mean = images.double().mean((0, 2, 3)).floor().to(torch.uint8)
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        expected = images[i].clone()
        expected[:, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = mean[:, None, None]
        assert torch.equal(covered[i], expected)


def test_an_even_cutout_has_its_size(images):
    covered = cutout(torch.zeros(200, 1, 12, 10, dtype=torch.uint8).fill_(7), 4, seeded())
    assert covered.eq(7).all()  # a plain image is its own mean colour
    covered = cutout(images, 4, seeded()) != images
    assert covered.any(dim=1).any(dim=2).sum(dim=1).max() == 4


@pytest.mark.parametrize("vary", [random_flip, lambda x, g: random_crop(x, 2, g), lambda x, g: cutout(x, 4, g)])
def test_augmentations_keep_uint8_shape_and_their_input(images, vary):
    before = images.clone()
    varied = vary(images, seeded())
    assert (varied.dtype, varied.shape) == (images.dtype, images.shape)
    assert torch.equal(images, before)
    assert torch.equal(varied, vary(images, seeded()))
    assert not torch.equal(varied, vary(images, torch.Generator().manual_seed(6)))
