"""Verdicts of the lab on tables whose truth is known; records against gradients that are computed by hand."""

import copy
import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t
from torch.nn import functional as F

from bnood.lab.checks import NOT_TESTED, REFUTED, STATEMENTS, SUPPORTED, UNDECIDED, Check, accuracy, check_lab
from bnood.lab.run import gradient_norms
from bnood.networks.norm import Norm
from bnood.networks.plain import MLP, PlainConvNet

ACCURACY = {"none": 0.1, "bn": 0.98, "ln": 0.82, "gn": 0.9}
FIRST_GRADIENT = {"none": 1e-4, "bn": 1.0, "ln": 1e-2, "gn": 1e-1}  # the last layer's is 1


def lab_table(
    accuracy: Mapping[str, float] = ACCURACY, relu: Mapping[str, float] = dict.fromkeys(ACCURACY, 0.9),
    validation: float = 0.0, seeds: tuple[int, ...] = (0, 1, 2),
) -> pd.DataFrame:  # fmt: skip
    """An invented lab: sigmoid and ReLU MLPs of 3 layers; validation accuracy is `validation` below the other."""
    found: list[dict[str, object]] = []
    for seed in seeds:
        draw = np.random.RandomState(seed)
        for activation, learnt in (("sigmoid", accuracy), ("relu", relu)):
            for norm in ACCURACY:
                rows = [(20, 0, "train_accuracy", learnt[norm])]
                rows.append((20, 0, "validation_accuracy", learnt[norm] - validation))
                for step in (0, 10, 20):
                    for layer in (1, 2, 3):
                        gradient = FIRST_GRADIENT[norm] ** ((3 - layer) / 2) if activation == "sigmoid" else 1.0
                        rows.append((step, layer, "gradient_norm", gradient))
                keys = {"architecture": "mlp", "activation": activation, "norm": norm}
                for step, layer, quantity, value in rows:
                    row = {"seed": seed, "step": step, "epoch": step / 10, "layer": layer, "quantity": quantity}
                    found.append(keys | row | {"value": value * (1 + 0.003 * draw.randn())})
    return pd.DataFrame(found)


def checks(**options: object) -> dict[str, Check]:
    return {check.statement: check for check in check_lab(lab_table(**options), 10)}  # type: ignore[arg-type]


def about(found: dict[str, Check], words: str) -> Check:
    (statement,) = [text for text in found if words in text]
    return found[statement]


def test_what_the_notes_say_is_supported_and_a_starved_gradient_is_a_plain_factor() -> None:
    found = checks()
    assert len(found) == len(STATEMENTS)
    assert {check.verdict for check in found.values()} == {SUPPORTED}
    number = about(found, "far less gradient").number
    assert number.startswith("1/") and number.endswith("of the last layer's gradient")
    assert float(number.split(" ")[0].removeprefix("1/").replace(",", "")) == pytest.approx(10_000, rel=0.05)


def test_interval_is_students_over_seeds() -> None:
    values = accuracy(lab_table(), "sigmoid", "bn") - accuracy(lab_table(), "sigmoid", "none")
    check = about(checks(), "BatchNorm lets sigmoid")
    half = t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert (check.low, check.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_learning_is_judged_on_training_accuracy_and_overfitting_is_named() -> None:
    check = about(checks(validation=0.3), "BatchNorm lets sigmoid")
    assert check.verdict == SUPPORTED and "+88" in check.number
    assert "BatchNorm 98 % in training, 68 % in validation, overfitted" in check.note
    assert "overfitted" not in about(checks(validation=0.05), "BatchNorm lets sigmoid").note


@pytest.mark.parametrize(
    ("options", "statement", "verdict", "effect"),
    [
        ({"accuracy": ACCURACY | {"none": 0.9, "ln": 0.9}}, "LayerNorm lets sigmoid", REFUTED, 0.0),
        ({"relu": {"none": 0.9, "bn": 0.7, "ln": 0.9, "gn": 0.9}}, "With ReLU", REFUTED, -0.2),
        # Networks that are still learning show a clear gain, and nothing else.
        ({"accuracy": ACCURACY | {"bn": 0.28}}, "BatchNorm lets sigmoid", SUPPORTED, 0.18),
        ({"accuracy": ACCURACY | {"ln": 0.1}}, "LayerNorm lets sigmoid", NOT_TESTED, None),
        ({"relu": {"none": 0.58, "bn": 0.47, "ln": 0.6, "gn": 0.6}}, "With ReLU", NOT_TESTED, None),
        ({"accuracy": dict.fromkeys(ACCURACY, 0.1)}, "BatchNorm lets sigmoid", NOT_TESTED, None),
    ],
)
def test_only_networks_that_have_learnt_can_refute(
    options: dict[str, object], statement: str, verdict: str, effect: float | None
) -> None:
    check = about(checks(**options), statement)
    assert check.verdict == verdict
    assert check.effect == (None if effect is None else pytest.approx(effect, abs=0.02))
    assert ("have not learnt enough to tell" in check.note) == (verdict == NOT_TESTED)


def test_networks_that_were_not_trained_are_not_tested_here() -> None:
    table = lab_table()
    (check,) = (c for c in check_lab(table[table["activation"] != "relu"], 10) if "With ReLU" in c.statement)
    assert check.verdict == NOT_TESTED and check.note == "no ReLU network with BatchNorm"
    assert json.loads(json.dumps(check._asdict(), allow_nan=False))["effect"] is None


def test_one_seed_decides_nothing_and_seeds_that_disagree_neither() -> None:
    alone = {(check.verdict, check.note) for check in checks(seeds=(0,)).values()}
    assert alone == {(NOT_TESTED, "an interval needs finite figures of two seeds or more")}
    assert about(checks(relu=dict.fromkeys(ACCURACY, 0.9) | {"bn": 0.93}), "With ReLU").verdict == UNDECIDED


X, Y = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10


def test_gradient_norms_are_those_of_a_training_step() -> None:
    network = MLP(depth=3, width=16, norm="bn", image_size=8)
    found = gradient_norms(network, X, Y)
    F.cross_entropy(network.train()(X), Y).backward()
    assert found == pytest.approx([float(layer.linear.weight.grad.norm()) for layer in network.layers], rel=1e-5)


@pytest.mark.parametrize("norm", ["none", "bn", "ln", "gn"])
def test_training_does_not_notice_a_record(norm: Norm) -> None:
    network = PlainConvNet(depth=3, width=8, norm=norm).train()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    gradient_norms(network, X, Y)
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
