"""What the penultimate units do (Sun, Guo & Li 2021), relative to the ID images under running statistics."""

import numpy as np

from bnood.errors import UserError
from bnood.evaluation.intervals import weighted_means
from bnood.networks.network import Head

LEAST_EFFECTIVE = 50
CLASS_GROUPS = 20
MANY_CLASSES = 100


class UnitReference:
    """The in-distribution reference of one network, per resample."""

    def __init__(self, p99: np.ndarray, means: np.ndarray) -> None:
        """From each unit's 99th percentile ``[D]`` and the means ``[R, D]`` of the reference images' features."""
        self.p99, self.spread, self.maximum = p99, means.std(axis=1, ddof=1), means.max(axis=1)
        if not (self.spread > 0).all():
            same = "the penultimate units all have the same mean on in-distribution images (all zero, perhaps)"
            raise UserError(f"{same}, so activations cannot be compared with it: has the training diverged?")

    def figures(self, means: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
        """The figures of the units (docs/method.md), from means of features ``[R, D]`` and ``share_above`` ``[R]``."""
        return {
            "unit_mean_spread_ratio": means.std(axis=1, ddof=1) / self.spread,
            "unit_mean_max_ratio": means.max(axis=1) / self.maximum,
            "share_above_id_p99": shares,
        }

    def per_unit(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Per unit ``[D]``: number, mean, std (ddof 1), maximum and share above the reference's 99th percentile."""
        return {
            "unit": np.arange(features.shape[1]),
            "mean": features.mean(axis=0, dtype=np.float64),
            "std": features.std(axis=0, ddof=1, dtype=np.float64) if len(features) > 1 else np.zeros(features.shape[1]),
            "max": features.max(axis=0).astype(np.float64),
            "share_above_id_p99": (features > self.p99).mean(axis=0, dtype=np.float64),
        }


def share_above(features: np.ndarray, p99: np.ndarray) -> np.ndarray:
    """The share of each image's units, features ``[N, D]``, that are above ``p99`` ``[D]``: float64 ``[N]``."""
    return (features > p99).mean(axis=1, dtype=np.float64)


class ClassMix:
    """The reference images by predicted class: what a set's mix of classes alone does to the units.

    Weighing images of n_k per class by a mix of shares m_k leaves Kish's effective number of images,
    1 / sum_k(m_k^2 / n_k). Below 50, and always beyond 100 classes, classes are grouped by their weights in the head.
    """

    def __init__(
        self, features: np.ndarray, prediction: np.ndarray, classes: int, counts: np.ndarray, head: Head | None = None
    ) -> None:
        """From the reference's features ``[N, D]``, predicted classes ``[N]`` and resample counts ``[R, N]``."""
        self.group = np.arange(classes)  # the class or group of classes that each class belongs to
        self.coarser: ClassMix | None = None  # the same with classes grouped
        if head is not None and classes > CLASS_GROUPS:
            group = grouped_classes(head.weight.numpy(), CLASS_GROUPS)
            if classes > MANY_CLASSES:
                self.group = group
            else:
                self.coarser = ClassMix(features, group[prediction], int(group.max()) + 1, counts)
                self.coarser.group = group
        groups = int(self.group.max()) + 1
        # Mean features of each group's images, 0 where it has none, in float32 for their size; numbers of its images.
        self.means = np.zeros((len(counts), groups, features.shape[1]), np.float32)
        self.sizes = np.zeros((len(counts), groups))
        for label in np.unique(self.group[prediction]):
            own = np.flatnonzero(self.group[prediction] == label)
            drawn = counts[:, own]
            self.sizes[:, label] = drawn.sum(axis=1)
            # A resample without any image of the class gets a mean that is never used.
            drawn[self.sizes[:, label] == 0, 0] = 1
            self.means[:, label] = weighted_means(features[own], drawn)
        self.maximum = weighted_means(features, counts).max(axis=1)  # largest mean over all images

    def control(self, prediction: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Largest unit mean of the reference images in the mix of a set's predicted classes ``[n]``, over their own.

        Classes without reference images are left out; where no other is left, the mix is the reference's own.
        """
        present = self.sizes > 0
        mix = weighted_means(self.group[prediction][:, None] == np.arange(self.means.shape[1]), counts) * present
        total = mix.sum(axis=1)
        known = total > 0
        mix /= np.where(known, total, 1)[:, None]
        squares = (mix**2 / np.where(present, self.sizes, 1)).sum(axis=1)
        effective = np.where(known, 1 / np.where(known, squares, 1), self.sizes.sum(axis=1))
        if effective[0] < LEAST_EFFECTIVE:
            return self.coarser.control(prediction, counts) if self.coarser else {"class_mix_effective_n": effective}
        ratio = np.where(known, np.matmul(mix[:, None, :], self.means)[:, 0].max(axis=1) / self.maximum, 1.0)
        return {"class_mix_effective_n": effective, "class_mix_max_ratio": ratio}


def grouped_classes(weight: np.ndarray, groups: int) -> np.ndarray:
    """The group ``[K]``, 0 to at most ``groups`` - 1, of each class: k-means of weights ``[K, D]``, cosine."""
    directions = weight / np.maximum(np.linalg.norm(weight, axis=1, keepdims=True), 1e-12)
    centres = directions[np.random.RandomState(0).permutation(len(weight))[:groups]]
    group = np.zeros(len(weight), np.int64)
    for _ in range(100):
        nearest = (directions @ centres.T).argmax(axis=1)
        if np.array_equal(nearest, group):
            break
        group = nearest
        sums = np.stack([directions[group == k].sum(axis=0) for k in range(len(centres))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
    return np.unique(group, return_inverse=True)[1]
