"""The recorder: its figures against NumPy's, and that training does not notice it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import STEPS, equal_weights, training_arguments
from torch import nn
from torch.nn import functional as F
from wandb_files import read_offline_runs

from bnood.errors import UserError
from bnood.lab.recorder import BINS, EDGES, Recorder, hidden_layers, histogram, layer_figures, probe
from bnood.training.classifier import Classifier
from bnood.training.train import train


def classifier(architecture: str = "mlp", norm: str = "bn", activation: str = "relu") -> Classifier:
    return Classifier(architecture, 4, 16, norm, 4, activation=activation, image_size=8).train()  # type: ignore[arg-type]


def batch(count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8), torch.randint(0, 10, (count,))


@pytest.mark.parametrize("architecture", ["mlp", "plain"])
@pytest.mark.parametrize("norm", ["bn", "none"])
def test_gradients_are_those_of_training_on_the_batch(architecture: str, norm: str) -> None:
    """``backward`` in training mode, on a copy, is what the probe has to agree with."""
    net, (images, labels) = classifier(architecture, norm), batch()
    figures, _ = probe(net, images, labels)
    twin = copy.deepcopy(net).train()
    F.cross_entropy(twin(images), labels).backward()
    expected = [float(layer.linear.weight.grad.norm()) for layer in hidden_layers(twin.network)]  # type: ignore[union-attr]
    assert [layer["gradient_norm"] for layer in figures] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("architecture", ["mlp", "plain"])
def test_a_probe_leaves_the_network_as_it_is(architecture: str) -> None:
    net, (images, labels) = classifier(architecture), batch()
    F.cross_entropy(net(images), labels).backward()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    modes, random = [module.training for module in net.modules()], torch.random.get_rng_state()
    probe(net, images, labels)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True) if p.grad is not None)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_what_a_layer_got_and_gave() -> None:
    """Pre-activations are the norm's output, the linear map's own output is its input, both in training mode."""
    net, (images, labels) = classifier(norm="bn"), batch()
    net.network.layers[0].norm.bias.data += 2  # type: ignore[union-attr, operator, index]
    figures, shares = probe(net, images, labels)
    first = net.network.layers[0]  # type: ignore[index]
    with torch.no_grad():
        scaled = ((images.float() - net.image_mean) / net.image_std).permute(0, 3, 1, 2).flatten(1)
        linear = first.linear(scaled).numpy()  # type: ignore[union-attr, operator]
    assert figures[0]["linear_mean"] == pytest.approx(linear.mean(), abs=1e-5)
    assert figures[0]["linear_std"] == pytest.approx(linear.std(), rel=1e-4)
    offset = np.sqrt(np.square(linear.mean(axis=0)).mean() / linear.var(axis=0).mean())
    assert figures[0]["linear_offset"] == pytest.approx(offset, rel=1e-3)
    assert figures[0]["preactivation_mean"] == pytest.approx(2, abs=1e-3)
    assert figures[0]["preactivation_std"] == pytest.approx(1, abs=1e-3)
    # The running averages are still 0 and 1: in evaluation mode the norm only adds its shift.
    assert figures[0]["running_mean"] == pytest.approx(linear.mean() + 2, abs=1e-3)
    assert {mode: each.shape for mode, each in shares.items()} == dict.fromkeys(shares, (4, BINS + 2))
    assert all(each.sum(axis=1) == pytest.approx(np.ones(4)) for each in shares.values())


def test_dead_always_on_and_saturated_units_are_counted() -> None:
    values = torch.tensor([[-1.0, 0.0, 1.0, -2.0], [-2.0, 0.0, 2.0, 3.0]])
    relu = type(hidden_layers(classifier(activation="relu").network)[0])(
        nn.Linear(1, 4), nn.Identity(), "relu", "before"
    )
    figures = layer_figures(relu, values, values)
    assert (figures["dead_share"], figures["always_on_share"]) == (0.5, 0.25)  # a zero is no life
    maps = values.repeat(3, 1).reshape(2, 3, 4).permute(0, 2, 1)[..., None]  # [2, 4, 3, 1]: pixels count as images
    assert layer_figures(relu, maps, maps)["preactivation_mean"] == pytest.approx(float(values.mean()))
    for name, edge in (("sigmoid", 2.944), ("tanh", 1.472)):
        layer = hidden_layers(classifier(activation=name).network)[0]
        around = torch.tensor([[edge - 0.01, edge + 0.01, -edge + 0.01, -edge - 0.01]])
        assert layer_figures(layer, around, around)["saturated_share"] == 0.5
        assert "dead_share" not in layer_figures(layer, around, around)


def test_no_share_is_given_of_values_that_overflowed() -> None:
    layer = hidden_layers(classifier(activation="relu").network)[0]
    values = torch.tensor([[-1.0, float("nan")], [-2.0, 1.0]])
    assert np.isnan(layer_figures(layer, values, values)["dead_share"])


def test_a_unit_is_dead_only_if_it_is_so_at_all_pixels() -> None:
    layer = hidden_layers(classifier("plain").network)[0]
    maps = -torch.ones(2, 4, 3, 3)
    maps[1, 2, 0, 1] = 0.5
    figures = layer_figures(layer, maps, maps)
    assert (figures["dead_share"], figures["always_on_share"]) == (0.75, 0)
    assert layer_figures(layer, -maps, -maps)["always_on_share"] == 0.75


def test_histograms_agree_with_numpy_and_count_what_lies_outside() -> None:
    values = torch.randn(500, 3) * 4
    shares = histogram(values)
    flat = values.numpy().ravel()
    counts = np.histogram(flat, bins=EDGES)[0]
    np.testing.assert_allclose(shares[1:-1], counts / flat.size, atol=2 / flat.size)  # float32 edges
    assert shares[0] == pytest.approx((flat < -6).mean()) and shares[-1] == pytest.approx((flat > 6).mean())


def recorded(tmp_path: Path, *more: str) -> tuple[Recorder, Path]:
    arguments = ["--model.architecture", "mlp", "--model.depth", "3", "--model.width", "16"]
    recorder = Recorder(every=3, images=40)
    return recorder, train([*training_arguments(tmp_path, "recorded"), *arguments, *more], [recorder])


def test_training_does_not_notice_and_the_tables_are_complete(tmp_path: Path) -> None:
    recorder, run = recorded(tmp_path)
    plain = ["--model.architecture", "mlp", "--model.depth", "3", "--model.width", "16"]
    assert equal_weights(run, train([*training_arguments(tmp_path, "plain"), *plain]))
    quantities, histograms = recorder.tables({"network": "a", "seed": 5})
    columns = ["network", "seed", "step", "epoch", "layer", "layers", "quantity", "value"]
    assert list(quantities.columns) == columns
    assert list(histograms.columns) == [*columns[:6], "mode", "bin_low", "bin_high", "share"]
    total = 2 * STEPS
    assert sorted(set(quantities["step"])) == [0, 3, 6, total]  # every third step, and the trained network
    assert set(quantities["layer"]) == {1, 2, 3} and set(quantities["layers"]) == {3}
    assert quantities.loc[quantities["step"] == total, "epoch"].unique().tolist() == [2.0]
    updates = quantities[quantities["quantity"] == "update_ratio"]
    assert sorted(set(updates["step"])) == [0, 3, 6] and (updates["value"] > 0).all()
    assert len(quantities) == len(quantities.drop_duplicates(["step", "layer", "quantity"]))
    assert len(histograms) == 2 * 4 * 3 * (BINS + 2) and set(histograms["mode"]) == {"training", "evaluation"}
    assert recorder.seconds_recording > 0 and recorder.seconds_training > 0


def test_the_update_ratio_is_that_of_the_step_taken(tmp_path: Path) -> None:
    """Without momentum, decay or schedule one step changes the weights by learning rate times gradient."""
    flat = ["--model.momentum", "0", "--model.weight_decay", "0", "--model.warmup", "0", "--trainer.max_epochs", "1"]
    whole = ["--data.augmentation", "none", "--data.batch_size", "256", "--model.learning_rate", "0.01"]
    arguments = ["--model.architecture", "mlp", "--model.depth", "3", "--model.width", "16", *flat, *whole]
    recorder = Recorder(every=1, images=256)  # the probe is the whole training set, as the batch is
    train([*training_arguments(tmp_path, "one"), *arguments], [recorder])
    table = recorder.tables({})[0].query("step == 0").pivot(index="layer", columns="quantity", values="value")
    weights = Classifier("mlp", 3, 16, image_size=16)
    sizes = [float(layer.linear.weight.norm()) for layer in hidden_layers(weights.network)]
    expected = 0.01 * table["gradient_norm"].to_numpy() / np.array(sizes)
    np.testing.assert_allclose(table["update_ratio"], expected, rtol=0.2)  # other weights of the same distribution


def test_weights_and_biases_gets_curves_and_histograms(tmp_path: Path) -> None:
    arguments = [part for part in training_arguments(tmp_path, "tracked") if part != "--no-wandb"]
    more = ["--model.architecture", "mlp", "--model.depth", "2", "--model.width", "8", "--wandb.group", "my-lab"]
    train([*arguments, *more, "--wandb.mode", "offline", "--trainer.max_epochs", "1"], [Recorder(every=2, images=20)])
    (run,) = read_offline_runs(tmp_path / "tracked")
    assert run.record.run_group == "my-lab"
    rows = [row for row in run.history if "layers/gradient_norm/02" in row]
    assert [row["trainer/global_step"] for row in rows] == [0, 2, 4]
    assert all(row["preactivations/01"]["_type"] == "histogram" for row in rows)
    assert sum(rows[0]["preactivations/01"]["values"]) == pytest.approx(1e6, rel=0.01)


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ResNet has no plain hidden layers to record: choose mlp or plain"):
        hidden_layers(Classifier("resnet", 20, 8).network)
    with pytest.raises(UserError, match=r"recorder\.every is 0"):
        Recorder(every=0)
    with pytest.raises(UserError, match="probe_images is 9999, but a training has 256 images"):
        train(
            [*training_arguments(tmp_path, "few"), "--model.architecture", "mlp", "--model.depth", "3"],
            [Recorder(images=9999)],
        )
