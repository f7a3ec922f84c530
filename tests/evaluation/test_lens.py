"""The lens of :mod:`bnood.evaluation.activations`: units and distances against plain hooks, NumPy, torch.distributions."""

import copy

import numpy as np
import pytest
import torch
from plain_interventions import batchnorm_names, matched_copy, tiny_classifier
from small_evaluation import small_classifier, small_images, small_set
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from bnood.errors import UserError
from bnood.evaluation.activations import (
    LENS_COLUMNS,
    layer_distances,
    lens,
    lens_reference,
    lens_tables,
    rectified_layers,
)
from bnood.evaluation.conditions import Images
from bnood.evaluation.interventions.sweep import InterventionOptions, intervene
from bnood.statistics import BatchNormStatistics, LayerStatistics, estimate_statistics, read_statistics
from bnood.training.classifier import Classifier

IMAGES = small_set("far", 30, seed=3, mean=60, contrast=20)
KNOWN = small_set("known", 45, seed=1)


def plain_units(classifier: Classifier, images: np.ndarray, rectified: set[str]) -> dict[str, np.ndarray]:
    """All images at once through a copy in evaluation mode, layer -> ``[N, C]`` float64."""
    network = copy.deepcopy(classifier).eval()
    values: dict[str, np.ndarray] = {}

    def look(name: str) -> object:
        def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            kept = output.double().numpy().copy()
            values[name] = (np.maximum(kept, 0) if name in rectified else kept).mean(axis=(2, 3))

        return keep

    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            layer.register_forward_hook(look(name))  # type: ignore[arg-type]
    with torch.no_grad():
        _, features = network(torch.from_numpy(images), return_features=True)
    return values | {"penultimate": features.double().numpy()}


def rectified_by_reading(classifier: Classifier) -> set[str]:
    """Read off the code: in residual blocks the second norm and the shortcut's are added up first."""
    names = [n for n, m in classifier.named_modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    if classifier.hparams["architecture"] == "wide_resnet":
        return set(names)
    return {name for name in names if not name.endswith((".norm2", ".shortcut.1"))}


@pytest.mark.parametrize("norm", ["bn", "ln", "gn"])
def test_rectified_layers_are_those_whose_output_goes_into_relu(norm: str) -> None:
    for classifier in (small_classifier(norm), tiny_classifier()):
        found = rectified_layers(classifier, torch.from_numpy(IMAGES.images[:2]))
        assert found == rectified_by_reading(classifier)


@pytest.mark.parametrize("norm", ["bn", "ln", "gn"])
def test_every_unit_equals_plain_hooks_over_all_images_at_once(norm: str) -> None:
    classifier = small_classifier(norm)
    statistics = "running" if norm == "bn" else None
    rectified = rectified_by_reading(classifier)
    expected = plain_units(classifier, IMAGES.images, rectified)
    known = plain_units(classifier, KNOWN.images, rectified)
    reference = lens_reference(classifier, KNOWN, statistics, chunk=8)  # type: ignore[arg-type]
    table = lens(classifier, IMAGES, statistics, reference, chunk=7)  # type: ignore[arg-type]
    assert list(table.columns) == LENS_COLUMNS
    assert list(dict.fromkeys(table.layer)) == list(expected)
    for position, (layer, values) in enumerate(expected.items()):
        rows = table[table.layer == layer]
        assert (rows.position == position).all()
        assert rows.unit.tolist() == list(range(values.shape[1]))
        np.testing.assert_allclose(rows["mean"], values.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows["std"], values.std(axis=0, ddof=1), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(rows["max"], values.max(axis=0), rtol=1e-4, atol=1e-5)
        p99 = np.percentile(known[layer], 99, axis=0)
        np.testing.assert_allclose(reference[layer], p99, rtol=1e-4, atol=1e-5)
        clear = np.abs(values - p99).min(axis=0) > 1e-4  # elsewhere rounding may decide
        above = (values > p99).mean(axis=0)
        np.testing.assert_allclose(rows.share_above_id_p99[clear], above[clear])
    assert table.share_above_id_p99.max() > 0.5


def test_without_a_reference_there_is_no_share_and_one_image_has_no_spread() -> None:
    table = lens(tiny_classifier(), IMAGES.subset(np.array([4])), "running")
    assert table.share_above_id_p99.isna().all()
    assert (table["std"] == 0).all()


def test_the_reference_takes_two_thousand_images_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnood.evaluation.activations.REFERENCE_IMAGES", 5)
    classifier = tiny_classifier()
    some = KNOWN.subset(np.array([0, 11, 22, 33, 44]))
    thinned, direct = lens_reference(classifier, KNOWN, "running"), lens_reference(classifier, some, "running")
    for layer, p99 in direct.items():
        np.testing.assert_allclose(thinned[layer], p99, rtol=1e-5, atol=1e-6)


def test_distances_equal_torch_distributions() -> None:
    rng = np.random.default_rng(0)

    def random_layer(width: int) -> LayerStatistics:
        mean, var = torch.from_numpy(rng.normal(size=width)), torch.from_numpy(rng.uniform(0.2, 4, width))
        return LayerStatistics(mean, var, 10)

    running = BatchNormStatistics({"one": random_layer(4), "two": random_layer(7)})
    own = BatchNormStatistics({"one": random_layer(4), "two": random_layer(7)})
    table = layer_distances(running, own, eps=0.0).set_index("layer")
    assert table.position.tolist() == [0, 1]
    for layer in running:
        r, o = (Normal(part[layer].mean, part[layer].var.sqrt()) for part in (running, own))
        kl = (kl_divergence(r, o) + kl_divergence(o, r)).mean()
        assert table.symmetric_kl[layer] == pytest.approx(float(kl))
        assert table.mean_shift[layer] == pytest.approx(float(((o.mean - r.mean).abs() / r.stddev).mean()))
        assert table.log_var_ratio[layer] == pytest.approx(float((2 * (o.stddev / r.stddev).log()).mean()))


def test_distances_of_equals_are_zero_and_constant_channels_stay_finite() -> None:
    constant = BatchNormStatistics({"one": LayerStatistics(torch.zeros(2).double(), torch.zeros(2).double(), 5)})
    varied = BatchNormStatistics({"one": LayerStatistics(torch.zeros(2).double(), torch.ones(2).double(), 5)})
    assert layer_distances(constant, constant).iloc[0, 2:].tolist() == [0, 0, 0]
    assert np.isfinite(layer_distances(varied, constant).iloc[0, 2:].astype(float)).all()
    assert layer_distances(varied, constant).log_var_ratio[0] == pytest.approx(np.log(1e-5 / (1 + 1e-5)))


def test_the_tables_of_an_evaluation() -> None:
    classifier, images = tiny_classifier(), small_images(40, (("far", 24, 20),))
    before = copy.deepcopy(classifier.train().state_dict())
    layers, distances = lens_tables(classifier, images, chunk=11)
    assert all(module.training for module in classifier.modules())
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())
    classifier.eval()
    assert layers.columns.tolist() == ["statistics", "dataset", "role", *LENS_COLUMNS]
    names = batchnorm_names(classifier)
    calibration, scored = images.ood["far"]
    for statistics, network in (
        ("running", classifier),
        ("recalibrated:target", matched_copy(classifier, calibration.images, names)),
    ):
        rows = layers[(layers.statistics == statistics) & (layers.dataset == "far")]
        assert set(rows.role) == {"ood"}
        for layer, values in plain_units(network, scored.images, set(names)).items():
            unit_means = rows[rows.layer == layer]["mean"]
            np.testing.assert_allclose(unit_means, values.mean(axis=0), rtol=1e-3, atol=1e-4)
    known = layers[(layers.statistics == "running") & (layers.role == "id")]
    assert known.groupby("layer").share_above_id_p99.mean().between(0.02, 0.03).all()  # 1 of 40 images
    # Each layer's input behind running layers: matched alone, a layer takes exactly this.
    assert distances.dataset.unique().tolist() == ["known", "far"]
    for position, name in enumerate(names):
        alone = matched_copy(classifier, calibration.images, [name])
        row = layer_distances(read_statistics(classifier), read_statistics(alone)).iloc[position]
        found = distances[(distances.dataset == "far") & (distances.layer == name)].iloc[0]
        for column in ("mean_shift", "log_var_ratio", "symmetric_kl"):
            assert found[column] == pytest.approx(row[column], rel=1e-3, abs=1e-5)


def test_statistics_that_are_known_are_not_matched_again() -> None:
    classifier, images = tiny_classifier(), small_images(40, (("far", 24, 20),))
    targets = {
        "known": read_statistics(classifier),
        "far": estimate_statistics(classifier, [torch.from_numpy(images.id_set.images)]),
    }
    layers, _ = lens_tables(classifier, images, targets)
    target = layers[layers.statistics == "recalibrated:target"].reset_index(drop=True)
    running = layers[layers.statistics == "running"].reset_index(drop=True)
    assert np.array_equal(target[target.role == "id"]["mean"], running[running.role == "id"]["mean"])
    direct = lens(classifier, images.ood["far"][1], targets["far"])
    np.testing.assert_allclose(target[target.role == "ood"]["mean"], direct["mean"], rtol=1e-6)


def test_networks_without_batchnorm_have_one_mode_and_no_distances() -> None:
    layers, distances = lens_tables(small_classifier("gn"), small_images(40, (("far", 24, 20),)))
    assert set(layers.statistics) == {"running"}
    assert len(distances) == 0 and "symmetric_kl" in distances.columns


class Twice(nn.Module):
    """A network of the reader's own, which runs its one norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, images: Tensor, return_features: bool = False) -> tuple[Tensor, Tensor]:
        values = self.norm(self.norm(images.permute(0, 3, 1, 2).float()) + 1)
        return self.linear(values.mean(dim=(2, 3))), values.mean(dim=(2, 3))


def test_what_the_lens_cannot_look_at_is_said() -> None:
    with pytest.raises(UserError, match="layer 'norm' runs twice in a forward pass"):
        lens(Twice(), IMAGES, "running")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(UserError, match=r"Sequential has no argument return_features: expected a network that is call"):
        lens(plain, IMAGES, None)
    with pytest.raises(UserError, match="far has no images to look at"):
        lens(small_classifier(), IMAGES.subset(np.arange(0)), "running")


class Own(nn.Module):
    """As in the README: a network of the reader's own, in a wrapper that gives logits and features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor, return_features: bool = False) -> object:
        features = self.body(images.permute(0, 3, 1, 2) / 255)
        return (self.head(features), features) if return_features else self.head(features)


def test_a_network_of_the_readers_own_needs_nothing_but_logits_and_features() -> None:
    model = Own().eval()
    reference = lens_reference(model, KNOWN, "running")
    table = lens(model, IMAGES, "running", reference)
    assert list(dict.fromkeys(table["layer"])) == ["body.1", "penultimate"]
    with torch.no_grad():
        _, features = model(torch.from_numpy(IMAGES.images), return_features=True)
    own = table[table["layer"] == "penultimate"]
    np.testing.assert_allclose(own["mean"], features.double().mean(dim=0), rtol=1e-5)
    images = Images(KNOWN, KNOWN, {"far": (IMAGES, IMAGES)})
    found = intervene(model, images, InterventionOptions(batch_sizes=(8,), shares=(0.5,), resamples=10))
    moved = found.table.query("kind == 'all' and dataset == 'far' and score == 'energy' and metric == 'mean'")
    assert len(moved) == 1 and np.isfinite(moved["value"]).all()
