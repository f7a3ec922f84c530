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
from tiny_runs import SIZE, VALIDATION, data_root, write_set

from bnood.data.datamodule import ImageDataModule, channel_constants
from bnood.data.sources import training_split

SETTINGS: dict[str, Any] = {
    "in_distribution": "tiny", "root": data_root(), "validation": VALIDATION, "batch_size": 64, "image_size": SIZE,
}  # fmt: skip


def attached(rank: int = 0, devices: int = 1, **changes: Any) -> ImageDataModule:
    """A module as a trainer of several devices sees it at the start of the first epoch."""
    data = ImageDataModule(**(SETTINGS | changes))
    data.setup("fit")
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=devices, current_epoch=0, fit_loop=SimpleNamespace(total_batch_idx=-1),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    return data


def rows(images: Any) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(images)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 255), st.integers(0, 255))
def test_channel_constants_are_numpys(seed: int, count: int, one: int, other: int) -> None:
    images = np.random.default_rng(seed).integers(min(one, other), max(one, other) + 1, (count, 3, 4, 3), np.uint8)
    mean, std = channel_constants(images)
    np.testing.assert_array_max_ulp(mean.numpy(), images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32))
    exact = images.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    np.testing.assert_array_max_ulp(std.numpy(), np.maximum(exact, np.float32(1e-3)))


class Collect(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.batches.append(batch)
        return self.weight

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


# Of all batches (images, labels) that version 0.1 gives in two epochs on the random images below.
VERSION_0_1 = {
    ("crop_flip", 0): "c8ecf186cec9819f", ("crop_flip", 3): "f8f232eb408b9981", ("flip", 0): "a8774dfe611b69f2",
    ("flip", 3): "96a4679a43c93cd6", ("none", 0): "57dfcedd66c0cd18",
}  # fmt: skip


@pytest.mark.parametrize(("augmentation", "seed"), VERSION_0_1)
def test_batches_are_those_of_version_0_1(augmentation: Any, seed: int, tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, (356, 16, 16, 3), dtype=np.uint8)
    file = write_set(tmp_path / "random.npz", images, np.arange(356) % 10)
    own = {"in_distribution": str(file), "augmentation": augmentation, "seed": seed, "train_count": 250}
    data, model = ImageDataModule(**(SETTINGS | own)), Collect()
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, data)
    assert len(model.batches) == 6  # full ones alone: 58 images are left out in each epoch
    digest = hashlib.sha256()
    for each in (part for batch in model.batches for part in batch):
        digest.update(each.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == VERSION_0_1[augmentation, seed]


def test_several_devices_share_each_batch_of_one() -> None:
    shares = [list(attached(rank, 4).train_dataloader()) for rank in range(4)]
    for step, batch in enumerate(attached().train_dataloader()):
        for part in (0, 1):
            assert torch.equal(torch.cat([share[step][part] for share in shares]), batch[part])


@pytest.mark.parametrize(("count", "devices", "size"), [(100, 1, 30), (100, 3, 500), (7, 4, 2), (61, 2, 30)])
def test_several_devices_validate_each_image_once_in_as_many_batches(count: int, devices: int, size: int) -> None:
    data = [attached(rank, devices, validation=count, evaluation_batch_size=size) for rank in range(devices)]
    shares = [list(each.val_dataloader()) for each in data]
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) == len(data[0].val_dataloader())
    assert max(len(labels) for share in shares for _, labels in share) <= size
    held_out = data[0].validation_set
    assert held_out is not None
    assert [row for share in shares for images, _ in share for row in rows(images)] == rows(held_out.images)


def test_split_holds_out_stratified_images_and_train_count_takes_some_of_the_others() -> None:
    train, validation = training_split(SETTINGS)
    source = np.load(data_root() / "tiny" / "train.npz")
    assert len(validation) == VALIDATION
    assert sorted(rows(train.images) + rows(validation.images)) == sorted(rows(source["images"]))
    few, same = training_split(SETTINGS | {"train_count": 40})
    assert len(few) == 40 and set(rows(few.images)) < set(rows(train.images))
    np.testing.assert_array_equal(same.images, validation.images)
    assert rows(training_split(SETTINGS | {"split_seed": 1})[1].images) != rows(validation.images)
