from __future__ import annotations

import math
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms as classic

from fishnet.config import PreprocessConfig
from fishnet.data.classification.transforms import AugmentConfig, Lighting, denormalize, eval_transform, train_transform
from fishnet.data.images import read_image
from fishnet.errors import UsageError
from tests.data.makers import noise

PLAIN = AugmentConfig(crop="resize", flip=0.0)
RAW = PreprocessConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
INTERPOLATION = classic.InterpolationMode
FILTERS = {"nearest": INTERPOLATION.NEAREST, "bilinear": INTERPOLATION.BILINEAR, "bicubic": INTERPOLATION.BICUBIC}


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.fixture
def photo(mini):
    return read_image(sorted((mini("pets3") / "val" / "images").glob("*.jpg"))[0])


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("size", "crop_pct"), [(64, 0.875), (96, 0.95), (48, 1.0)])
def test_eval_equals_the_classic_pipeline(photo, size, crop_pct, interpolation):
    preprocess = PreprocessConfig(crop_pct=crop_pct, interpolation=interpolation)
    oracle = classic.Compose(
        [
            classic.Resize(math.floor(size / crop_pct), FILTERS[interpolation]),
            classic.CenterCrop(size),
            classic.ToTensor(),
            classic.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    shown = eval_transform(preprocess, size)(photo)
    assert shown.shape == (3, size, size)
    assert shown.dtype == torch.float32
    assert shown.is_contiguous()
    torch.testing.assert_close(shown, oracle(photo), rtol=0, atol=1e-6)


def test_eval_leaves_an_image_of_the_right_size_as_it_is():
    image = noise(0, 32, 32)
    shown = eval_transform(replace(RAW, crop_pct=1.0), 32)(image)
    assert np.array_equal((shown * 255).round().numpy(), np.asarray(image).transpose(2, 0, 1))


def test_eval_takes_small_and_rectangular_images():
    for width, height in ((10, 7), (500, 20), (33, 32)):
        assert eval_transform(PreprocessConfig(), 32)(noise(1, width, height)).shape == (3, 32, 32)


def test_random_resized_crop_equals_the_classic_one(photo):
    augment = AugmentConfig(flip=0.0, scale=(0.2, 0.9), ratio=(0.5, 1.5))
    oracle = classic.RandomResizedCrop(40, (0.2, 0.9), (0.5, 1.5))
    transform = train_transform(augment, RAW, 40)
    for number in range(10):
        seed(number)
        shown = transform(photo)
        seed(number)
        torch.testing.assert_close(shown, classic.ToTensor()(oracle(photo)), rtol=0, atol=1e-6)


def test_pad_crops_from_the_reflected_image():
    image = noise(2, 32, 32)
    transform = train_transform(replace(PLAIN, crop="pad", pad=4), RAW, 32)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    corners = set()
    for number in range(200):
        seed(number)
        shown = (transform(image) * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)
        found = [
            (y, x) for y in range(9) for x in range(9) if np.array_equal(shown, padded[y : y + 32, x : x + 32])
        ]  # fmt: skip
        assert len(found) == 1
        corners.update(found)
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(9))


def test_pad_resizes_other_sizes_first():
    transform = train_transform(replace(PLAIN, crop="pad"), RAW, 24)
    for width, height in ((24, 60), (100, 50), (8, 8)):
        assert transform(noise(3, width, height)).shape == (3, 24, 24)


def test_resize_takes_the_whole_image(photo):
    shown = train_transform(PLAIN, RAW, 40)(photo)
    expected = classic.ToTensor()(classic.Resize((40, 40))(photo))
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-6)


def test_flip_mirrors_half_of_the_images():
    image = noise(4, 32, 32)
    straight = train_transform(PLAIN, RAW, 32)(image)
    seed(0)
    transform = train_transform(replace(PLAIN, flip=0.5), RAW, 32)
    shown = [transform(image) for _ in range(200)]
    flipped = sum(torch.equal(one, straight.flip(2)) for one in shown)
    assert flipped + sum(torch.equal(one, straight) for one in shown) == 200
    assert 70 < flipped < 130


# eigenvectors are columns; rows are the channels R, G, B
VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
VALUES = np.array([0.2175, 0.0188, 0.0045])


@pytest.mark.parametrize("released", [False, True])
def test_lighting_against_the_formula(released):
    seed(5)
    draws = torch.randn(3).double().numpy() * 0.1
    seed(5)
    shift = Lighting(0.1, released)(torch.full((3, 4, 4), 0.5)) - 0.5
    assert torch.equal(shift, shift[:, :1, :1].expand(3, 4, 4))
    expected = np.zeros(3)
    for channel in range(3):
        for k in range(3):
            # the released recipe takes row k for component k, from a matrix whose columns are stored backwards
            weight = VECTORS[k, 2 - channel] if released else VECTORS[channel, k]
            expected[channel] += weight * draws[k] * VALUES[k]
    np.testing.assert_allclose(shift[:, 0, 0].numpy(), expected, atol=1e-7)


def test_lighting_follows_the_principal_components():
    seed(6)
    for released in (False, True):
        light = Lighting(1.0, released)
        shifts = torch.stack([light(torch.zeros(3, 1, 1)).flatten() for _ in range(4000)]).double().numpy()
        strongest = np.linalg.svd(shifts, full_matrices=False)[2][0]
        along = abs(strongest @ VECTORS[:, 0])
        # the first component is close to gray: all channels move together; the released axis mixes them up
        assert along > 0.999 if not released else along < 0.5


def test_lighting_comes_before_normalization():
    image = noise(7, 32, 32)
    preprocess = PreprocessConfig()
    seed(8)
    shown = train_transform(replace(PLAIN, lighting=0.1), preprocess, 32)(image)
    seed(8)
    lit = Lighting(0.1)(classic.ToTensor()(image))
    torch.testing.assert_close(shown, classic.Normalize(preprocess.mean, preprocess.std)(lit), rtol=0, atol=1e-6)


def test_rand_augment_equals_timm():
    image = noise(9, 64, 64)
    transform = train_transform(replace(PLAIN, rand_augment="rand-m6-mstd0.5-inc1"), RAW, 64)
    oracle = rand_augment_transform("rand-m6-mstd0.5-inc1", {"translate_const": 28, "img_mean": (0, 0, 0)})
    changed = 0
    for number in range(40):
        seed(number)
        shown = transform(image)
        seed(number)
        expected = classic.ToTensor()(oracle(image))
        torch.testing.assert_close(shown, expected, rtol=0, atol=1e-6)
        changed += not torch.equal(expected, classic.ToTensor()(image))
    assert changed > 20  # each of two operations acts with probability 1/2


def test_rand_augment_fills_with_the_mean_color():
    preprocess = PreprocessConfig()
    transform = train_transform(replace(PLAIN, rand_augment="rand-m9-n1-p1"), preprocess, 64)
    mean = torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1)
    filled = 0
    for number in range(60):
        seed(number)
        shown = denormalize(transform(noise(9, 64, 64)), preprocess)
        filled += bool((shown == mean).all(dim=0).sum() > 64)
    assert filled > 5  # rotations, shears and translations are 5 of 15 operations


def test_the_strongest_rand_augment_never_fails():
    transform = train_transform(replace(PLAIN, rand_augment="rand-m10-n4-inc1"), RAW, 32)
    image = noise(10, 32, 32)
    for number in range(100):
        seed(number)
        assert torch.isfinite(transform(image)).all()


def test_color_jitter_keeps_the_shape_and_changes_colors():
    image = noise(11, 32, 32)
    seed(0)
    transform = train_transform(replace(PLAIN, color_jitter=0.4), RAW, 32)
    shown = transform(image)
    assert not torch.equal(shown, transform(image))
    assert 0 <= shown.min() <= shown.max() <= 1


def test_random_erasing_replaces_one_rectangle_after_normalization():
    image = noise(12, 32, 32)
    preprocess = PreprocessConfig()
    whole = train_transform(PLAIN, preprocess, 32)(image)
    seed(1)
    erased = train_transform(replace(PLAIN, random_erasing=1.0), preprocess, 32)(image)
    changed = (erased != whole).any(dim=0)
    rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
    box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.all()
    assert 0.01 < changed.float().mean() < 0.4
    inside = erased[:, changed]
    assert abs(inside.mean()) < 0.3
    assert 0.7 < inside.std() < 1.3


def test_denormalize_gives_the_image_back():
    image = noise(13, 32, 32)
    preprocess = PreprocessConfig(crop_pct=1.0)
    tensor = eval_transform(preprocess, 32)(image)
    back = denormalize(torch.stack([tensor, tensor]), preprocess)
    assert back.dtype == torch.uint8
    assert np.array_equal(back[1].numpy(), np.asarray(image).transpose(2, 0, 1))
    assert torch.equal(denormalize(tensor, preprocess), back[0])
    assert denormalize(torch.full((3, 1, 1), 99.0), preprocess).flatten().tolist() == [255] * 3


MODERN = AugmentConfig(
    color_jitter=0.3, lighting=0.1, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25
)  # fmt: skip


def test_pickles_and_tells_what_it_does():
    transform = train_transform(MODERN, PreprocessConfig(), 32)
    copy = pickle.loads(pickle.dumps(transform))
    image = noise(14)
    for number in range(5):
        seed(number)
        expected = transform(image)
        seed(number)
        assert torch.equal(copy(image), expected)
    steps = [line.split("(")[0].strip() for line in repr(transform).splitlines()]
    assert steps == [
        "Pipeline:", "RandomResizedCrop", "Flip", "RandAugment", "ColorJitter", "ToTensor", "Lighting",
        "Normalize", "RandomErasing",
    ]  # fmt: skip
    assert "rand-m9-mstd0.5-inc1" in repr(transform)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scale": (0.5, 0.1)}, "augment.scale"),
        ({"scale": (0.5, 2.0)}, "augment.scale"),
        ({"ratio": (0.0, 1.0)}, "augment.ratio"),
        ({"flip": 1.5}, "augment.flip"),
        ({"random_erasing": -0.1}, "augment.random_erasing"),
        ({"color_jitter": -1.0}, "augment.color_jitter"),
        ({"crop": "pad", "pad": 32}, "augment.pad"),
        ({"crop": "center"}, "augment.crop"),
        ({"rand_augment": "rand-what9"}, "augment.rand_augment"),
        ({"rand_augment": "augmix-m3"}, "augment.rand_augment"),
        ({"rand_augment": "rand-mfast"}, "augment.rand_augment"),
    ],
)
def test_wrong_augmentation_is_a_usage_error(change, word):
    with pytest.raises(UsageError, match=word):
        train_transform(replace(AugmentConfig(), **change), PreprocessConfig(), 32)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": 1.1}, "crop_pct"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"std": (1.0, 0.0, 1.0)}, "preprocess.std"),
    ],
)
def test_wrong_preprocessing_is_a_usage_error(change, word):
    with pytest.raises(UsageError, match=word):
        eval_transform(replace(PreprocessConfig(), **change), 32)
    with pytest.raises(UsageError, match="size"):
        eval_transform(PreprocessConfig(), 0)
