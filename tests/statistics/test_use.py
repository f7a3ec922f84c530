"""What a network computes under given statistics, and that it is afterwards what it was, down to the buffers' identity.

The oracles are copies of the network whose buffers or training flags are set by hand.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from unchanged import untouched

from bnood.errors import UserError
from bnood.statistics import (
    BatchNormStatistics,
    LayerStatistics,
    Mode,
    decide_statistics,
    estimate_statistics,
    read_statistics,
    use_statistics,
)


def small_model() -> nn.Sequential:
    """Two BatchNorm layers and a dropout, with running statistics that training left; in train mode."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 2)),
    )
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6) * 2 + 1)
    return model


def made_up_statistics(model: nn.Module) -> BatchNormStatistics:
    read = read_statistics(model)
    return BatchNormStatistics(
        {name: LayerStatistics(s.mean + torch.randn(len(s.mean)), 2 * s.var + 0.3, 1) for name, s in read.items()}
    )


def expected(model: nn.Module, statistics: BatchNormStatistics | Mode, x: Tensor) -> Tensor:
    """What a copy of the model computes, with its flags and buffers set by hand."""
    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, _BatchNorm):
            module.train(statistics == "batch")
            if isinstance(statistics, BatchNormStatistics) and name in statistics:
                module.running_mean.copy_(statistics[name].mean)
                module.running_var.copy_(statistics[name].var)
    with torch.no_grad():
        return twin(x)


@torch.no_grad()
def run(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def all_modes(model: nn.Module) -> dict[str, BatchNormStatistics | Mode]:
    full = made_up_statistics(model)
    first = next(iter(full))
    return {"running": "running", "batch": "batch", "given": full, "partial": BatchNormStatistics({first: full[first]})}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small": small_model,
    "small, evaluating": lambda: small_model().eval(),
    "double": lambda: small_model().double(),
    "resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=5),
    "not affine": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten()),
    "sync": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.Flatten()),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_mode_computes_what_a_copy_set_by_hand_does_and_leaves_no_trace(name: str) -> None:
    model = MODELS[name]()
    x = torch.randn(6, 3, 32, 32) if "net" in name else torch.randn(6, 3, 6, 6)
    x = x.to(next(model.parameters()).dtype)
    outputs = []
    for mode in all_modes(model).values():
        with untouched(model):
            with use_statistics(model, mode) as same:
                assert same is model
                outputs.append(run(model, x))
            if name != "sync" or mode != "batch":  # in train mode, SyncBatchNorm wants a GPU
                torch.testing.assert_close(outputs[-1], expected(model, mode, x))
    for one, other in itertools.combinations(outputs[:3], 2):
        assert not torch.allclose(one, other, atol=1e-3)
    with untouched(model):
        estimate_statistics(model, [x, x + 1], method="sequential", tolerance=float("inf"))


@pytest.mark.parametrize("flags", [{"track_running_stats": False}, {"track_running_stats": False, "affine": False}])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_layers_without_running_statistics(flags: dict[str, bool], kind: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, **flags), nn.Tanh()).to(kind)
    tracking = nn.Sequential(model[0], nn.BatchNorm1d(4).to(kind), model[2])
    x = torch.randn(9, 3, dtype=kind)
    given = made_up_statistics(tracking)
    for mode in (given, "batch"):
        with untouched(model):
            with use_statistics(model, mode):
                found = run(model, x)
            torch.testing.assert_close(found, expected(tracking, mode, x))
    for mode in ("running", BatchNormStatistics({})):
        message = "layer '1' keeps no running statistics"
        with untouched(model), pytest.raises(UserError, match=message), use_statistics(model, mode):
            pass
    with use_statistics(model, given):  # not even now: what is in its buffers are not its own
        with pytest.raises(UserError, match="layer '1' keeps no"), use_statistics(model, "running"):
            pass
        torch.testing.assert_close(run(model, x), expected(tracking, given, x))


@pytest.mark.parametrize("order", list(itertools.product(("running", "batch", "given", "partial"), repeat=3)), ids=str)
def test_nested_contexts_in_every_order(order: tuple[str, str, str]) -> None:
    model = small_model()
    modes, x = all_modes(model), torch.randn(6, 3, 6, 6)
    first, second, third = (modes[name] for name in order)
    results = []
    with untouched(model):
        with use_statistics(model, first):
            with untouched(model), use_statistics(model, second):
                with untouched(model), use_statistics(model, third):
                    results.append((third, run(model, x)))
                results.append((second, run(model, x)))
            results.append((first, run(model, x)))
        for mode, found in results:
            torch.testing.assert_close(found, expected(model, mode, x))


def test_reading_and_estimating_inside_a_context() -> None:
    model = small_model()
    own, x = read_statistics(model), torch.randn(6, 3, 6, 6)
    outside = estimate_statistics(model, [x])
    for mode in all_modes(model).values():
        with use_statistics(model, mode), untouched(model):
            assert all(torch.equal(read_statistics(model)[name].mean, own[name].mean) for name in own)
            inside = estimate_statistics(model, [x])
            assert all(torch.equal(inside[name].var, outside[name].var) for name in own)


@pytest.mark.parametrize("mode", ["running", "batch", "given", "partial"])
def test_errors_inside_restore_the_model(mode: str) -> None:
    model = small_model()
    given = all_modes(model)[mode]
    with untouched(model):
        with pytest.raises(KeyboardInterrupt), use_statistics(model, given), use_statistics(model, "batch"):
            raise KeyboardInterrupt
        with pytest.raises(RuntimeError), use_statistics(model, given):
            model(torch.randn(2, 7, 6, 6))
        with pytest.raises(RuntimeError):
            estimate_statistics(model, [torch.randn(8, 3, 6, 6), torch.randn(2, 7, 6, 6)])
    x = torch.randn(6, 3, 6, 6)
    with use_statistics(model, "running"):  # nothing that an error left behind counts as the model's own
        torch.testing.assert_close(run(model, x), expected(model, "running", x))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_under_every_gradient_mode(context: Callable[[], Any]) -> None:
    model = small_model()
    x = torch.randn(6, 3, 6, 6)
    for mode in all_modes(model).values():
        with untouched(model), context():
            with use_statistics(model, mode):
                found = model(x)
            torch.testing.assert_close(found.detach(), expected(model, mode, x))
    model(x).sum().backward()  # the buffers are still ones that autograd accepts


def test_gradients_flow_through_given_statistics() -> None:
    model = small_model().double()
    x = torch.randn(6, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        found = estimate_statistics(model, [x])
    with use_statistics(model, found):
        model(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_training_inside_never_writes_to_the_given_statistics() -> None:
    """In a double model no conversion would part the buffers from the statistics' own tensors."""
    model = small_model().double()
    given, own = made_up_statistics(model), read_statistics(model)
    before = given["1"].mean.clone()
    with use_statistics(model, given):
        model[1].train()
        run(model, torch.randn(6, 3, 6, 6, dtype=torch.float64))
        assert not torch.equal(model[1].running_mean, before)
    assert torch.equal(given["1"].mean, before)
    assert torch.equal(model[1].running_mean, own["1"].mean)


def test_the_models_own_train_method_is_not_called() -> None:
    class Stubborn(nn.Sequential):
        def train(self, mode: bool = True) -> "Stubborn":
            raise AssertionError("train() was called")

    model = Stubborn(nn.BatchNorm1d(3), nn.Dropout(0.5))
    with untouched(model), use_statistics(model, "batch"):
        assert torch.equal(run(model, torch.ones(4, 3)), torch.zeros(4, 3))


def test_compiled_models_follow_the_statistics() -> None:
    """With the tracing but not the C++ of ``torch.compile``: which graph is used is decided by the tracing."""
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(6, 3, 6, 6)
    modes = all_modes(compiled)
    for name in ("running", "batch", "given", "running", "given", "batch", "partial"):
        with untouched(model):
            with use_statistics(compiled, modes[name]):
                found = run(compiled, x)
            torch.testing.assert_close(found, expected(compiled._orig_mod, modes[name], x))


def test_statistics_that_do_not_fit() -> None:
    model = small_model()
    good = read_statistics(model)["1"]
    cases = {
        "no BatchNorm layer 'elsewhere'": BatchNormStatistics({"elsewhere": good}),
        "no BatchNorm layer '2'": BatchNormStatistics({"2": good}),
        "layer '6' has 5 channels, but the statistics have 4": BatchNormStatistics({"6": good}),
        "unknown statistics 'train'": "train",
        "unknown statistics dict: give": {"1": good},
    }
    for message, statistics in cases.items():
        with untouched(model), pytest.raises(UserError, match=message), use_statistics(model, statistics):
            pass


def test_named_layers_are_decided_upon_before_they_run_and_none_leaves_the_running_statistics() -> None:
    """That what is decided is what the layers use: tests/evaluation/test_interventions.py."""
    model, x = small_model().eval(), torch.randn(6, 3, 6, 6)
    for layers in (None, ["6"]):
        asked: list[str] = []
        with untouched(model), decide_statistics(model, lambda name, found, to=asked: to.append(name), layers):
            torch.testing.assert_close(run(model, x), expected(model, "running", x))
        assert asked == (layers or ["1", "6"])
    take = pytest.raises(UserError, match="no BatchNorm layer '7x'")
    with take, decide_statistics(model, lambda name, found: found, ["7x"]):
        pass

    def fail(name: str, found: LayerStatistics) -> LayerStatistics:
        raise ArithmeticError(name)

    with untouched(model), pytest.raises(ArithmeticError):  # noqa: SIM117
        with use_statistics(model, "batch"), decide_statistics(model, fail):
            model(x)
