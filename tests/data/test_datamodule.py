"""The data module: what is trained on, in which order, and what is held out."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import SIZE, TRAIN, VALIDATION, data_root, write_set

from bnood.data.datamodule import EpochShuffle, ImageDataModule, channel_constants, has_test_images
from bnood.errors import UserError


def module(**changes: Any) -> ImageDataModule:
    settings: dict[str, Any] = {
        "in_distribution": "tiny",
        "root": data_root(),
        "validation": VALIDATION,
        "batch_size": 64,
        "image_size": SIZE,
    }
    return ImageDataModule(**(settings | changes))


def rows(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 255), st.integers(0, 255))
def test_channel_constants_are_numpys(seed: int, count: int, one: int, other: int) -> None:
    images = np.random.default_rng(seed).integers(min(one, other), max(one, other) + 1, (count, 3, 4, 3), np.uint8)
    mean, std = channel_constants(images)
    np.testing.assert_allclose(mean, images.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.astype(np.float64).std(axis=(0, 1, 2)), rtol=1e-9, atol=1e-9)


def test_epoch_shuffle_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        shuffle = EpochShuffle(50, seed)
        shuffle.set_epoch(epoch)
        assert len(shuffle) == 50
        return list(shuffle)

    first = order(0, 0)
    assert sorted(first) == list(range(50))
    assert first == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_split_holds_out_stratified_images_whatever_the_seed() -> None:
    data = module(seed=5)
    train, validation = data.split()
    source = np.load(data_root() / "tiny" / "train.npz")
    assert len(validation) == VALIDATION
    assert sorted(rows(train.images) + rows(validation.images)) == sorted(rows(source["images"]))
    assert train.labels is not None and validation.labels is not None
    label_of = dict(zip(rows(source["images"]), source["labels"], strict=True))
    for part in (train, validation):
        assert [label_of[row] for row in rows(part.images)] == list(part.labels)  # type: ignore[arg-type]
    share = np.bincount(source["labels"], minlength=10) * VALIDATION / len(source["labels"])
    assert abs(np.bincount(validation.labels, minlength=10) - share).max() < 1
    again = module(seed=6).split()[1]
    np.testing.assert_array_equal(again.images, validation.images)
    other = module(split_seed=1).split()[1]
    assert rows(other.images) != rows(validation.images)


def test_train_count_keeps_the_validation_images_and_takes_some_of_the_others() -> None:
    all_images, validation = module().split()
    few, same = module(train_count=40).split()
    assert len(few) == 40
    assert set(rows(few.images)) < set(rows(all_images.images))
    np.testing.assert_array_equal(same.images, validation.images)


def test_training_batches_are_full_and_each_image_keeps_its_label() -> None:
    data = module(batch_size=50)
    data.setup("fit")
    assert data.train_set is not None and data.train_set.labels is not None
    label_of = dict(zip(rows(data.train_set.images), data.train_set.labels, strict=True))
    batches = list(data.train_dataloader())
    assert [len(images) for images, _ in batches] == [50] * (TRAIN // 50)  # 256 images: the last 6 are left out
    seen = [row for images, _ in batches for row in rows(images.numpy())]
    assert len(set(seen)) == len(seen)
    assert seen != rows(data.train_set.images)[: len(seen)]
    assert [label_of[row] for row in seen] == [int(label) for _, labels in batches for label in labels]


def test_validation_batches_are_all_images_in_order() -> None:
    data = module(evaluation_batch_size=30)
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert [len(images) for images, _ in batches] == [30, 30, 30, 10]
    assert data.validation_set is not None and data.validation_set.labels is not None
    np.testing.assert_array_equal(torch.cat([images for images, _ in batches]), data.validation_set.images)
    np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]), data.validation_set.labels)


class Collect(L.LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.training_images: list[torch.Tensor] = []
        self.validation_images: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.training_images.append(batch[0])
        return self.weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_images.append(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def collected(epochs: int = 1, **changes: Any) -> tuple[Collect, ImageDataModule]:
    data, model = module(**changes), Collect()
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, data)
    return model, data


def test_training_images_are_augmented_anew_in_each_step_and_validation_images_never() -> None:
    model, data = collected(epochs=2)
    assert data.train_set is not None and data.validation_set is not None
    np.testing.assert_array_equal(torch.cat(model.validation_images[:1]), data.validation_set.images)
    # A crop of another image would not have its pixels: here only that they changed, and by what seed.
    untouched = set(rows(data.train_set.images))
    seen = [row for images in model.training_images for row in rows(images.numpy())]
    assert sum(row in untouched for row in seen) < 0.1 * len(seen)
    again, _ = collected(epochs=2)
    other, _ = collected(epochs=2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.training_images, again.training_images, strict=True))
    assert not torch.equal(model.training_images[0], other.training_images[0])


def test_steps_draw_differently() -> None:
    """The same image in every place: what is left of it shows the draws of each step."""
    one = np.random.default_rng(0).integers(1, 256, (1, SIZE, SIZE, 3), np.uint8)
    file = write_set(data_root() / "one" / "train.npz", np.repeat(one, 130, 0), np.arange(130) % 2)
    model, _ = collected(in_distribution=str(file), validation=2)
    first, second = model.training_images
    assert not torch.equal(first, second)


@pytest.mark.parametrize("augmentation", ["flip", "none"])
def test_flip_mirrors_and_none_leaves_alone(augmentation: Any) -> None:
    model, data = collected(augmentation=augmentation)
    assert data.train_set is not None
    untouched = set(rows(data.train_set.images))
    mirrored = set(rows(np.ascontiguousarray(data.train_set.images[:, :, ::-1])))
    seen = [row for images in model.training_images for row in rows(images.numpy())]
    assert all(row in untouched | mirrored for row in seen)
    share = sum(row in untouched for row in seen) / len(seen)
    assert share == 1 if augmentation == "none" else 0.4 < share < 0.6


def test_bad_input_is_named() -> None:
    unlabelled = write_set(data_root() / "unlabelled.npz", np.zeros((200, SIZE, SIZE, 3), np.uint8))
    for changes, words in (
        ({"batch_size": 1000}, "256 training images do not fill one batch .data.batch_size=1000."),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"evaluation_batch_size": -1}, "data.evaluation_batch_size is -1"),
        ({"train_count": 0}, "data.train_count is 0"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"validation": 356}, "tiny: validation is 356"),
        ({"in_distribution": str(unlabelled)}, "unlabelled.npz: training needs labels"),
        ({"image_size": 32}, "train.npz: images are 16 x 16 pixels; expected 32 x 32"),
    ):
        with pytest.raises(UserError, match=words):
            module(**changes).setup("fit")


def test_which_sets_have_test_images_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set without any gives the same images as train and as test."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for folder in ("plain/images/a", "plain/images/b", "cifar10/images/a", "here/a"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(pixels[0]).save(tmp_path / folder / "0.png")
    write_set(tmp_path / "both" / "train.npz", pixels)
    write_set(tmp_path / "both" / "test.npz", pixels[::-1])
    write_set(tmp_path / "file.npz", pixels)
    monkeypatch.chdir(tmp_path)
    assert has_test_images("shapes", tmp_path)
    assert has_test_images("svhn", tmp_path)
    assert has_test_images("both", tmp_path)
    for name in ("plain", "cifar10", "here", "file.npz", str(tmp_path / "plain"), "./here"):
        assert not has_test_images(name, tmp_path)
