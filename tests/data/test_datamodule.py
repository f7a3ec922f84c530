"""The data module: what is trained on, in which order, on which device, and what is held out."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import SIZE, TRAIN, VALIDATION, data_root, write_set

from bnood.data.datamodule import ImageDataModule, channel_constants, epoch_plan, has_test_images
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


def attached(rank: int = 0, devices: int = 1, epoch: int = 0, **changes: Any) -> ImageDataModule:
    """A module as a trainer of several devices sees it at the start of an epoch."""
    data = module(**changes)
    data.setup("fit")
    assert data.train_set is not None
    done = epoch * (len(data.train_set) // data.batch_size)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=devices, current_epoch=epoch, fit_loop=SimpleNamespace(total_batch_idx=done - 1),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    return data


def rows(images: Any) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(images)]


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 255), st.integers(0, 255))
def test_channel_constants_are_numpys(seed: int, count: int, one: int, other: int) -> None:
    images = np.random.default_rng(seed).integers(min(one, other), max(one, other) + 1, (count, 3, 4, 3), np.uint8)
    mean, std = channel_constants(images)
    np.testing.assert_allclose(mean, images.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.astype(np.float64).std(axis=(0, 1, 2)), rtol=1e-9, atol=1e-9)


# The first and the sixth batch (images, labels) of version 0.1, by augmentation and seed.
VERSION_0_1 = {
    ("crop_flip", 0): ("874bb542e578be1a", "89d202819688899c", "8b159986263b31ad", "a162869c9b82f97a"),
    ("crop_flip", 3): ("484081d5a7ea914b", "bf98c948eca09d83", "3f8fe6e211962a9f", "b7c72c5cfa5f4932"),
    ("flip", 0): ("ab0950dc071c185d", "89d202819688899c", "a385a703f8ff29f7", "a162869c9b82f97a"),
    ("flip", 3): ("39444745b470e596", "bf98c948eca09d83", "cbd7bc9a66227cec", "b7c72c5cfa5f4932"),
    ("none", 0): ("27d11ec6f2b80680", "89d202819688899c", "f6497cded8bd1842", "a162869c9b82f97a"),
}


@pytest.mark.parametrize(("augmentation", "seed"), VERSION_0_1)
def test_batches_are_those_of_version_0_1(augmentation: Any, seed: int) -> None:
    batches = [
        batch
        for epoch in (0, 1)
        for batch in attached(epoch=epoch, augmentation=augmentation, seed=seed, train_count=TRAIN).train_dataloader()
    ]
    assert tuple(digest(each) for step in (0, 5) for each in batches[step]) == VERSION_0_1[augmentation, seed]


def test_an_epoch_depends_on_seed_epoch_and_step_alone() -> None:
    def plan(seed: int, epoch: int, first: int = 7, augmentation: Any = "flip") -> torch.Tensor:
        return epoch_plan(50, 8, seed, epoch, first, augmentation)

    first = plan(0, 0)
    assert first.shape == (6, 4, 8) and plan(0, 0, augmentation="none").shape == (6, 1, 8)
    assert len(first[:, 0].unique()) == 48  # full batches: two images are left out
    assert torch.equal(first, plan(0, 0))
    assert not torch.equal(first[:, 1:], plan(0, 0, first=8)[:, 1:])
    assert len({digest(plan(seed, epoch)[:, 0]) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("devices", [2, 4])
def test_several_devices_share_each_batch_of_one(devices: int) -> None:
    whole = list(attached().train_dataloader())
    shares = [list(attached(rank, devices).train_dataloader()) for rank in range(devices)]
    assert len(whole) == TRAIN // 64
    for step, batch in enumerate(whole):
        for part in (0, 1):
            assert torch.equal(torch.cat([share[step][part] for share in shares]), batch[part])


@pytest.mark.parametrize(("count", "devices", "size"), [(100, 2, 30), (100, 3, 500), (7, 4, 2), (61, 2, 30), (5, 5, 1)])
def test_several_devices_validate_each_image_once_in_as_many_batches(count: int, devices: int, size: int) -> None:
    data = [attached(rank, devices, validation=count, evaluation_batch_size=size) for rank in range(devices)]
    shares = [list(each.val_dataloader()) for each in data]
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) == len(data[0].val_dataloader())
    assert max(len(labels) for share in shares for _, labels in share) <= size
    held_out = data[0].validation_set
    assert held_out is not None
    assert [row for share in shares for images, _ in share for row in rows(images)] == rows(held_out.images)


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
    np.testing.assert_array_equal(module(seed=6).split()[1].images, validation.images)
    assert rows(module(split_seed=1).split()[1].images) != rows(validation.images)


def test_train_count_keeps_the_validation_images_and_takes_some_of_the_others() -> None:
    all_images, validation = module().split()
    few, same = module(train_count=40).split()
    assert len(few) == 40
    assert set(rows(few.images)) < set(rows(all_images.images))
    np.testing.assert_array_equal(same.images, validation.images)


def test_training_batches_are_full_and_each_image_keeps_its_label() -> None:
    data = attached(batch_size=50, augmentation="none")
    assert data.train_set is not None and data.train_set.labels is not None
    label_of = dict(zip(rows(data.train_set.images), data.train_set.labels, strict=True))
    batches = list(data.train_dataloader())
    assert [len(images) for images, _ in batches] == [50] * (TRAIN // 50)  # 256 images: the last 6 are left out
    seen = [row for images, _ in batches for row in rows(images)]
    assert len(set(seen)) == len(seen)
    assert [label_of[row] for row in seen] == [int(label) for _, labels in batches for label in labels]


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


def test_lightning_is_given_new_batches_in_every_epoch_and_validation_images_as_they_are() -> None:
    data, model = module(train_count=130), Collect()
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, data)
    expected = [images for epoch in (0, 1) for images, _ in attached(epoch=epoch, train_count=130).train_dataloader()]
    assert len(expected) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.training_images, expected, strict=True))
    assert data.validation_set is not None
    assert rows(torch.cat(model.validation_images)) == rows(data.validation_set.images) * 2


def test_steps_draw_differently() -> None:
    """The same image in every place: what is left of it shows the draws of each step."""
    one = np.random.default_rng(0).integers(1, 256, (1, SIZE, SIZE, 3), np.uint8)
    file = write_set(data_root() / "one" / "train.npz", np.repeat(one, 130, 0), np.arange(130) % 2)
    (first, _), (second, _) = attached(in_distribution=str(file), validation=2).train_dataloader()
    assert not torch.equal(first, second)


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
