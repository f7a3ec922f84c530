"""How a model is wrapped, what it is made of and how its batches look: found, or refused with the true reason."""

import copy
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized as quantized
import torchvision
from timm.layers import EvoNorm2dB0
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset
from torchvision.ops.misc import FrozenBatchNorm2d
from unchanged import untouched

from bnood.errors import UserError
from bnood.statistics import (
    BatchNormStatistics,
    LayerStatistics,
    batchnorm_layers,
    decide_statistics,
    estimate_statistics,
    executed_layers,
    has_batchnorm,
    read_statistics,
    unwrapped,
    use_statistics,
)

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1


OTHER = BatchNormStatistics({"other": LayerStatistics(torch.zeros(3), torch.ones(3), 1)})


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class Domains(nn.Module):
    """One norm per domain, of which evaluation runs the second before the first, and never the third."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](input=self.norms[1](x).relu())


@pytest.mark.parametrize("wrap", ["parallel", "averaged", "compiled", "all"])
def test_layers_have_the_names_of_the_bare_model(wrap: str) -> None:
    wrapped: nn.Module = small()
    if wrap in ("parallel", "all"):
        wrapped = nn.DataParallel(wrapped)
    if wrap in ("compiled", "all"):
        wrapped = torch.compile(wrapped, backend="eager")
    if wrap in ("averaged", "all"):
        wrapped = AveragedModel(wrapped)
    bare = unwrapped(wrapped)
    assert type(bare) is nn.Sequential and unwrapped(bare) is bare
    assert list(batchnorm_layers(wrapped)) == list(read_statistics(wrapped)) == ["1"]
    found = estimate_statistics(wrapped, [X])
    with untouched(bare), torch.no_grad():
        with use_statistics(bare, found):
            expected = bare(X)
        with use_statistics(wrapped, found):
            torch.testing.assert_close(wrapped(X), expected)
    assert executed_layers(wrapped, X) == ["1"]
    part = nn.Sequential(wrapped, nn.Sequential(nn.Identity(), nn.BatchNorm1d(4)))
    assert list(estimate_statistics(part, [X])) == ["0.1", "1.1"]


def test_distributed_models(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = small()
        wrapped = DistributedDataParallel(model)
        with untouched(model), torch.no_grad():
            found = estimate_statistics(wrapped, [X])
            with use_statistics(wrapped, found):
                assert torch.equal(wrapped(X), model(X))
            with use_statistics(wrapped, "batch"):
                torch.testing.assert_close(wrapped(X), copy.deepcopy(model).train()(X))
    finally:
        torch.distributed.destroy_process_group()
    assert list(found) == ["1"]


def test_layers_that_evaluation_does_not_run_are_left_out_with_one_warning() -> None:
    model = Domains()
    for method in ("one_pass", "sequential"):
        with untouched(model), pytest.warns(UserWarning, match=r"did not run 'norms\.2'") as caught:
            found = estimate_statistics(model, [X, X + 1], method=method)
        assert list(found) == ["norms.0", "norms.1"] and len(caught) == 1
    torch.testing.assert_close(found["norms.1"].mean, torch.cat([X, X + 1]).double().mean((0, 2, 3)))
    assert executed_layers(model, X) == ["norms.1", "norms.0"]
    with pytest.raises(UserError, match=r"ran none of the model's BatchNorm layers \('norms.0'"):
        estimate_statistics(model, [X], call=lambda model, x: None)


@pytest.mark.parametrize("method", ["one_pass", "sequential"])
def test_call_hands_any_kind_of_batch_to_the_model(method: str) -> None:
    model = small()
    expected = estimate_statistics(model, [X[:5], X[5:]], method=method)

    def call(bare: nn.Module, batch: dict[str, Any]) -> None:
        assert bare is model
        bare(torch.from_numpy(batch["image"]))

    batches = [{"image": X[:5].numpy()}, {"image": X[5:].numpy()}]
    found = estimate_statistics(nn.DataParallel(model), batches, method=method, call=call)
    assert torch.equal(found["1"].mean, expected["1"].mean) and torch.equal(found["1"].var, expected["1"].var)
    assert executed_layers(model, batches[0], call) == ["1"]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches were given"),
        ([X[:0]], "no batches were given"),
        (lambda: iter(()), "no batches were given"),
        (X, r"the batches are one tensor, .* give \[images\]"),
        ([{"image": X}], "batch 1 is a dict, not a tensor.*call="),
        ([X, ([X, X], 0)], "batch 2 begins with a list.*call="),
        ([X.numpy()], "batch 1 is a ndarray, not a tensor"),
        ([()], "batch 1 is a tuple"),
        ([X, torch.arange(8)], r"batch 2 has the shape \[8\]"),
        (list(X), r"layer '1' has 4 channels, but its input the shape \[4, 4, 4\]: give batches of images, not single"),
        (TensorDataset(X), "a Dataset, which gives single images: put a DataLoader around it"),
    ],
)
def test_batches_that_need_another_form_are_named(batches: Any, message: str) -> None:
    model = small()
    with untouched(model), pytest.raises(UserError, match=message):
        estimate_statistics(model, batches)


REFUSED = {
    "scripted": (lambda: torch.jit.script(small()), r"the model \(RecursiveScriptModule\) is scripted or traced"),
    "traced": (lambda: torch.jit.trace(small(), X), "is scripted or traced"),
    "a scripted part": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), torch.jit.script(small())),
        r"layer '1' .* is scripted or traced",
    ),
    "exported": (lambda: torch.export.export(small(), (X,)).module(), r"model \(GraphModule\) is an exported graph"),
    "quantized": (lambda: nn.Sequential(quantized.BatchNorm2d(3)), r"layer '0' \(BatchNorm2d\) is quantized"),
    "folded": (lambda: nn.Sequential(quantized.ReLU6()), "quantizing folds BatchNorm into the convolutions"),
    "frozen": (lambda: torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d), r"'bn1'.*FrozenBatchNorm2d\) keep"),
    "instance": (lambda: nn.InstanceNorm2d(3, track_running_stats=True), r"'' \(InstanceNorm2d\)"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_only_looks_like_batchnorm_is_refused_with_its_reason(kind: str) -> None:
    make, message = REFUSED[kind]
    model = make()
    for use in (lambda: use_statistics(model, "batch").__enter__(), lambda: estimate_statistics(model, [X])):
        with pytest.raises(UserError, match=message):
            use()


def test_traced_modules_keep_their_layers_and_frozen_layers_are_named() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(OrderedDict(batch_norm=nn.BatchNorm2d(3))))
    assert list(estimate_statistics(traced, [X])) == ["batch_norm"]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.BatchNorm2d(4), EvoNorm2dB0(4))
    with pytest.warns(UserWarning, match=r"'1', '3' \(EvoNorm2dB0, FrozenBatchNorm2d\) keep fixed statistics"):
        assert list(estimate_statistics(model, [X])) == ["2"]
    assert has_batchnorm(model) and not has_batchnorm(model[1])


def test_a_scripted_part_without_batchnorm_runs_in_evaluation_mode_and_gets_its_own_back() -> None:
    model = nn.Sequential(torch.jit.script(nn.Dropout(0.5)), nn.BatchNorm2d(3)).train()
    with use_statistics(model, estimate_statistics(model, [X])):
        assert torch.equal(model(X), model(X)) and not model[0].training
    assert all(module.training for module in model.modules()) and model[1].track_running_stats
    assert torch.equal(model[1].running_mean, torch.zeros(3))


def test_a_batch_of_single_values_is_named() -> None:
    with pytest.raises(UserError, match=r"has 3 channels, but its input the shape \[3, 6\]: give batches"):
        estimate_statistics(nn.Sequential(nn.BatchNorm1d(3)), list(X[..., 0]))
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.ReLU()).eval()
    with untouched(model):
        with pytest.raises(UserError, match="layer '3' received a single value per channel in batch 2"):
            estimate_statistics(model, [X[:7], X[7:]])
        with use_statistics(model, "batch"):
            with pytest.raises(UserError, match=r"layer '3' received a single value .* shape \[1, 3\]"):
                model(X[:1])
            with use_statistics(model, "running"):
                model(X[:1])
    # Where the statistics upstream are given, the cut does not matter.
    whole, ones = (
        estimate_statistics(model, batches, method="sequential", tolerance=1e-9) for batches in ([X], list(X.split(1)))
    )
    assert max(max(pair) for pair in whole.distance(ones).values()) < 1e-6


def outputs(model: nn.Module, mode: Any) -> Iterator[Tensor]:
    with use_statistics(model, mode), torch.no_grad():
        for x in (X, X + 1, X + 2):
            yield model(x)


def test_generators_read_in_turn_are_refused_and_leave_no_trace() -> None:
    model = small()
    with untouched(model):
        with pytest.raises(UserError, match="paused generator"):
            list(zip(outputs(model, "running"), outputs(model, "batch"), strict=True))
        started = outputs(model, "batch")
        next(started)
        for refused in (lambda: estimate_statistics(model, [X]), lambda: next(outputs(model, "running"))):
            with pytest.raises(UserError, match="paused generator"):
                refused()
        started.close()
        abandoned = outputs(model, "batch")
        next(abandoned)
        del abandoned
        with use_statistics(model, "running"):
            assert len(list(outputs(model, "batch"))) == 3


def test_coroutines_in_turn_are_refused() -> None:
    import asyncio

    model = small()

    async def serve(mode: Any) -> None:
        with use_statistics(model, mode), use_statistics(model, mode):
            await asyncio.sleep(0)

    async def both() -> list[Any]:
        return await asyncio.gather(serve("running"), serve("batch"), return_exceptions=True)

    with untouched(model):
        first, second = asyncio.run(both())
    assert first is None and isinstance(second, UserError)


def test_another_thread_is_refused_at_once() -> None:
    model, errors = small(), []

    def enter() -> None:
        try:
            with use_statistics(model, "batch"):
                pass
        except UserError as error:
            errors.append(str(error))

    with untouched(model):
        for context in (use_statistics(model, "running"), ExitStack()):  # the second holds nothing
            with context:
                thread = threading.Thread(target=enter)
                thread.start()
                thread.join()
            assert len(errors) == 1 and "another thread" in errors[0]


def test_contexts_made_of_contexts_nest() -> None:
    model = small()

    @contextmanager
    def mine(mode: Any) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(use_statistics(model, mode))
            yield

    with untouched(model), mine("running"), mine("batch"), decide_statistics(model, lambda name, found: found):
        target = estimate_statistics(model, [X], method="sequential")
        with use_statistics(model, target):  # the innermost counts: X + 9 is not decided upon
            inside = model(X + 9)
    with use_statistics(model, target):
        torch.testing.assert_close(model(X + 9), inside)


def test_contexts_left_in_another_order_restore_the_model_with_the_last() -> None:
    model = small()
    target = estimate_statistics(model, [X])
    with untouched(model), torch.no_grad():
        one, two, three = (use_statistics(model, mode) for mode in ("batch", target, "running"))
        for context in (one, two, three):
            context.__enter__()
        running = model(X)
        for context in (one, two):
            context.__exit__(None, None, None)
            assert torch.equal(model(X), running)
        three.__exit__(None, None, None)


def test_copies_made_inside_keep_the_statistics_and_nothing_of_the_context() -> None:
    model = small()
    target = estimate_statistics(model, [X])
    with untouched(model), torch.no_grad():
        for mode in (target, "running", "batch"):
            with use_statistics(model, mode):
                expected, copied, pickled = model(X), copy.deepcopy(model), pickle.dumps(model)
            for twin in (copied, pickle.loads(pickled)):
                assert torch.equal(twin(X), expected)
        seen: list[str] = []
        with decide_statistics(model, lambda name, found: seen.append(name)):
            copied = copy.deepcopy(model)
            copied(X)
        assert not seen and torch.equal(copied(X), model(X))


@pytest.mark.parametrize(
    ("mean", "var", "count", "message"),
    [
        ([0.0, float("nan")], [1.0, 1.0], 1, "layer 'a': the mean or the variance is NaN"),
        ([0.0, float("inf")], [1.0, 1.0], 1, "layer 'a': the mean or the variance is NaN"),
        ([0.0, 0.0], [1.0, float("nan")], 1, "layer 'a': the mean or the variance is NaN"),
        ([0.0, 0.0], [1.0, -0.5], 1, r"layer 'a': the variance is negative in some channel \(-0.5\)"),
        ([0.0, 0.0], [1.0], 1, r"layer 'a': mean and variance .* shapes \[2\] and \[1\]"),
        ([[0.0]], [[1.0]], 1, "one value per channel"),
        ([0.0], [1.0], -1, "layer 'a': the count is -1; expected a whole number from 0"),
        ([0j], [1.0], 1, "layer 'a': mean and variance have to be tensors of real numbers"),
    ],
)
def test_values_that_are_no_statistics(mean: Any, var: Any, count: int, message: str, tmp_path: Path) -> None:
    given = LayerStatistics(torch.tensor(mean), torch.tensor(var), count)
    with pytest.raises(UserError, match=message):
        BatchNormStatistics({"a": given})
    model = nn.BatchNorm1d(given.mean.numel())
    with untouched(model), decide_statistics(model, lambda name, found: given), pytest.raises(UserError):
        model(torch.randn(4, model.num_features))
    from safetensors.torch import save_file

    tensors = {"a.mean": given.mean, "a.var": given.var, "a.count": torch.tensor(count)}
    save_file(tensors, tmp_path / "s", {"layers": "a"})
    with pytest.raises(UserError, match="does not hold BatchNorm statistics.*" + message):
        BatchNormStatistics.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sequential", "max_passes": 0}, "max_passes is 0: an estimate takes one pass at least"),
        ({"method": "sequential", "tolerance": float("nan")}, "tolerance is nan"),
        ({"method": "sequential", "tolerance": -1}, "tolerance is -1"),
        ({"max_passes": 2}, "belong to method='sequential'"),
        ({"method": "twopass"}, "unknown method 'twopass'"),
        ({"method": "sequential", "start": OTHER}, "another model"),
        ({"method": "sequential", "start": "running"}, "start is a str; expected BatchNormStatistics"),
        ({"method": "sequential", "tolerance": "1"}, "tolerance is '1'"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        estimate_statistics(small(), [X], **options)
