"""The embedded sets: their bits, their splits, and that only the outline tells the class."""

import hashlib
import math

import numpy as np
import pytest
from bnood.data.outlines import CLASSES, UNSEEN
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bnood.data.drawing import arc, cosine, disc, polygon, polyline, sine, value_noise
from bnood.data.image_set import ImageSet
from bnood.data.synthetic import CLASS_NAMES, SYNTHETIC, synthetic_images
from bnood.errors import UserError

# sha256 of the pixel bytes of seed 0: the first 64 images, and the whole split. Whoever changes the drawing
# changes what earlier results were measured on; then these change too, and the changelog says so.
CHECKSUMS = {
    ("shapes", "train"): (
        "b27978982b5bd3ea1e088069f3125e5f141fc4ef3dbc17e146ca96ba1e048686",
        "014e3112bb59670c2a0c4a65bdc801436e428050ee0d748c4e359418135e3702",
    ),
    ("shapes", "test"): (
        "7ba524098ef9961b8f98be9184995ebe47b0f4ccc0ef7f7bef82eb5dae311686",
        "80ec36f8bccd59567efcd33ba104826359bb6fed003c3bca174d4e42c55b4ea5",
    ),
    ("digits", "test"): (
        "cb7ba7fd2d659d30faa9a641ff7a23c37cba0d3f447f3bd3683224e447c70a00",
        "3b6320f0078ef6de729e5be30334fc31a6cf56f5716119be3a152c71828e8917",
    ),
    ("textures", "test"): (
        "261c5aff944c3235893653762bab428b393dcb64c173c6e5ef9ecaac5633334d",
        "d7f26789f5e29fcf9c66eb9cc6eda9634c6786364b8f3459b0f9ddfaa95f94ce",
    ),
    ("unseen_shapes", "test"): (
        "25e71535f819d10443f27c100398be0e069a9b7a7ab1c28405fdee3976cc06f1",
        "79388118817280d5782c3870918df1ad8beadcdd5f47393f85e93ce751576799",
    ),
    ("gaussian_noise", "test"): (
        "96f64d0474da28e4b2cc24aea455667651cf4350beab4131f46e2b374df9aebb",
        "7a43fc4cda7d1cd8152fdf35da3688b126c8d034a7b9f95b5d89e22b1eb087b9",
    ),
    ("uniform_noise", "test"): (
        "8ddbaee400be54ca1d28ddb59357ce9a296fe3248fae82e76bbcad3ad3ececa3",
        "450d2b8a76b527c9b4c2d25bdac42ebb79560751e06979c4817f41e3d786a26b",
    ),
}

EVERY_SPLIT = [(name, split) for name, recipe in SYNTHETIC.items() for split in recipe.splits]


def checksum(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def drawn() -> dict[tuple[str, str], ImageSet]:
    """Every split of seed 0, whole."""
    return {(name, split): synthetic_images(name, split) for name, split in EVERY_SPLIT}


@pytest.mark.parametrize(("name", "split"), EVERY_SPLIT)
def test_the_pixels_are_the_published_ones(drawn, name, split):
    images = drawn[name, split].images
    assert (checksum(images[:64]), checksum(images)) == CHECKSUMS[name, split]


@pytest.mark.parametrize(("name", "split"), EVERY_SPLIT)
def test_sizes_types_and_balanced_labels(drawn, name, split):
    recipe, images = SYNTHETIC[name], drawn[name, split]
    assert images.name == name
    assert images.images.shape == (recipe.splits[split], 32, 32, 3)
    if name.endswith("noise"):
        assert images.labels is None
    else:
        counts = np.bincount(images.labels)
        assert len(counts) == len(recipe.kinds) >= 10
        assert counts.max() - counts.min() <= 1


def test_published_sizes():
    assert dict(SYNTHETIC["shapes"].splits) == {"train": 10_000, "test": 2_000}
    for name in ("digits", "textures", "unseen_shapes", "gaussian_noise", "uniform_noise"):
        assert dict(SYNTHETIC[name].splits) == {"test": 2_000}


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("count", [1, 37, 250, 251])
def test_the_first_images_do_not_depend_on_the_count(drawn, name, count):
    few = synthetic_images(name, "test", count=count)
    assert np.array_equal(few.images, drawn[name, "test"].images[:count])
    assert few.labels is None or np.array_equal(few.labels, drawn[name, "test"].labels[:count])


def test_more_images_than_the_split_holds_can_be_drawn(drawn):
    more = synthetic_images("uniform_noise", "test", count=2_100)
    assert len(more) == 2_100
    assert np.array_equal(more.images[:2_000], drawn["uniform_noise", "test"].images)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_seeds_make_other_images(name):
    same, again = synthetic_images(name, "test", seed=5, count=20), synthetic_images(name, "test", seed=5, count=20)
    other = synthetic_images(name, "test", seed=6, count=20)
    assert np.array_equal(same.images, again.images)
    assert not any(np.array_equal(a, b) for a, b in zip(same.images, other.images, strict=True))


def test_drawing_leaves_numpys_global_stream_alone():
    np.random.seed(3)
    expected = np.random.random_sample(4)
    np.random.seed(3)
    synthetic_images("shapes", "test", count=3)
    assert np.array_equal(np.random.random_sample(4), expected)


def test_no_image_comes_twice_in_any_split_or_set(drawn):
    images = [image.tobytes() for part in drawn.values() for image in part.images]
    assert len(set(images)) == len(images)


def test_train_and_test_share_no_stream():
    # Another split draws other scenes, not only other pixel noise: blurred images are unrelated too.
    train, test = (synthetic_images("shapes", split, count=400).images for split in ("train", "test"))
    small = [part.reshape(400, 4, 8, 4, 8, 3).mean((2, 4)).ravel() for part in (train, test)]
    assert abs(np.corrcoef(*small)[0, 1]) < 0.05


def accuracy_from(features, train: ImageSet, test: ImageSet) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    model.fit(features(train.images), train.labels)
    return model.score(features(test.images), test.labels)


def mean_and_spread(images: np.ndarray) -> np.ndarray:
    pixels = images.reshape(len(images), -1, 3) / 255
    return np.concatenate([pixels.mean(1), pixels.std(1), pixels.mean(1) ** 2], axis=1)


def middle_colour(images: np.ndarray) -> np.ndarray:
    """Mean colour of the middle, where the shape lies, beside the whole image's."""
    return np.concatenate([images[:, 8:24, 8:24].mean((1, 2)), images.mean((1, 2))], axis=1)


def colour_histogram(images: np.ndarray) -> np.ndarray:
    code = (images // 64 * np.array([16, 4, 1])).sum(-1).reshape(len(images), -1)
    return np.stack([(code == bin).mean(1) for bin in range(64)], axis=1)


@pytest.mark.parametrize("features", [mean_and_spread, middle_colour, colour_histogram])
def test_colour_does_not_give_the_class(drawn, features):
    accuracy = accuracy_from(features, drawn["shapes", "train"].subset(np.arange(4_000)), drawn["shapes", "test"])
    assert accuracy < 0.13  # chance: 0.1; n = 2000 has a standard error of 0.007


def test_texture_does_not_give_the_class(drawn):
    def corners(images: np.ndarray) -> np.ndarray:
        """Steps between neighbouring pixels in the four corners, where the shape hardly ever reaches."""
        patches = [images[:, y : y + 6, x : x + 6].astype(float) for y in (0, 26) for x in (0, 26)]
        return np.stack([np.abs(np.diff(patch, axis=axis)).mean((1, 2, 3)) for patch in patches for axis in (1, 2)], 1)

    accuracy = accuracy_from(corners, drawn["shapes", "train"].subset(np.arange(4_000)), drawn["shapes", "test"])
    assert accuracy < 0.14


def filled(outline) -> np.ndarray:
    """The pixels inside an outline, 64 x 64 over -1.4 to 1.4."""
    axis = np.linspace(-1.4, 1.4, 64)
    x, y = np.meshgrid(axis, axis)
    return outline(x[None], y[None])[0] < 0


def test_no_unseen_shape_is_one_of_the_classes():
    assert len(CLASSES) == len(UNSEEN) == 10
    assert not set(CLASSES) & set(UNSEEN)
    axis = np.linspace(-1.4, 1.4, 64)
    x, y = np.meshgrid(axis, axis)
    for unseen in UNSEEN.values():
        for known in CLASSES.values():
            overlap = 0.0
            target = filled(known)
            for turn in np.linspace(0, 2 * math.pi, 36, endpoint=False):
                c, s = math.cos(turn), math.sin(turn)
                mask = unseen((c * x + s * y)[None], (c * y - s * x)[None])[0] < 0
                overlap = max(overlap, (mask & target).sum() / (mask | target).sum())
            assert overlap < 0.85


@pytest.mark.parametrize("outline", [*CLASSES.values(), *UNSEEN.values()], ids=[*CLASSES, *UNSEEN])
def test_outlines_are_alike_in_area_and_fit_the_unit_scale(outline):
    mask = filled(outline)
    area = mask.sum() * (2.8 / 63) ** 2
    assert 1.0 < area < 2.8
    assert not mask[0].any() and not mask[-1].any() and not mask[:, 0].any() and not mask[:, -1].any()


def test_class_names_follow_the_labels():
    assert SYNTHETIC["shapes"].kinds == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == 10


def test_gaussian_noise_has_the_stated_distribution(drawn):
    images = drawn["gaussian_noise", "test"].images
    shares = np.bincount(images.ravel(), minlength=256) / images.size
    edges = norm.cdf((np.arange(255) + 0.5 - 127.5) / 63.75)
    expected = np.diff(np.concatenate([[0], edges, [1]]))
    standard_error = np.sqrt(expected * (1 - expected) / images.size)
    assert np.abs((shares - expected) / standard_error).max() < 5
    assert abs(np.corrcoef(images[..., 0].ravel(), images[..., 1].ravel())[0, 1]) < 0.005


def test_uniform_noise_has_the_stated_distribution(drawn):
    images = drawn["uniform_noise", "test"].images
    shares = np.bincount(images.ravel(), minlength=256) / images.size
    assert np.abs(shares * 256 - 1).max() < 5 * math.sqrt(256 / images.size)


def test_sine_is_the_sine():
    turns = np.random.RandomState(0).uniform(-20, 20, 10_000)
    np.testing.assert_allclose(sine(turns), np.sin(2 * np.pi * turns), atol=2e-9)
    np.testing.assert_allclose(cosine(turns), np.cos(2 * np.pi * turns), atol=2e-9)


def test_polygon_distance_against_hand_computed_ones():
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    x, y = np.array([0, 0.5, 3, 4, -1]), np.array([0, 0, 0, 5, 0])
    np.testing.assert_allclose(polygon(x, y, square), [-1, -0.5, 2, 5, 0], atol=1e-15)
    np.testing.assert_allclose(polyline(x, y, square[:2]), [1, 1, math.sqrt(5), math.sqrt(45), 1])


def test_polygon_of_many_corners_is_a_disc():
    x, y = np.random.RandomState(0).uniform(-1.5, 1.5, (2, 1_000))
    np.testing.assert_allclose(polygon(x, y, arc((0, 0), (1, 1), 0, 1, 400)[:-1]), disc(x, y, (0, 0), 1), atol=1e-4)


def test_value_noise_meets_its_grid_and_stays_within_it():
    grid = np.random.RandomState(0).random_sample((3, 9, 9))
    field = value_noise(grid)
    assert field.shape == (3, 32, 32)
    assert field.min() >= grid.min() and field.max() <= grid.max()
    np.testing.assert_allclose(value_noise(np.full((1, 5, 5), 0.3)), 0.3)
    ramp = value_noise(np.broadcast_to(np.arange(5.0), (1, 5, 5)))  # constant down the columns, rising along the rows
    assert np.all(np.diff(ramp, axis=2) > 0) and np.all(ramp[:, 0] == ramp[:, 31])


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("shape", "test"), {}, "shapes, digits, textures, unseen_shapes, gaussian_noise, uniform_noise"),
        (("shapes", "val"), {}, "no split 'val': choose one of train, test"),
        (("digits", "train"), {}, "no split 'train': choose one of test"),
        (("shapes", "test"), {"seed": -1}, "seed -1"),
        (("shapes", "test"), {"seed": 2**32}, "seed 4294967296"),
        (("shapes", "test"), {"count": 0}, "count 0"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(arguments, options, said):
    with pytest.raises(UserError) as caught:
        synthetic_images(*arguments, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
