"""Finding the BatchNorm layers of a model, whatever it is wrapped in, and saying why there are none."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from bnood.errors import UserError


def unwrapped(model: nn.Module) -> nn.Module:
    """The bare model inside DataParallel, DistributedDataParallel, AveragedModel and ``torch.compile``."""
    while True:
        # What torch.compile returns; its class can only be imported together with the whole compiler.
        if type(model).__module__.startswith("torch._dynamo"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, (DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        else:
            return model


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As torch's ``named_modules``, with the names of the bare model: wrappers leave no trace in them."""
    seen: set[nn.Module] = set()
    # A stack of our own: a recursive generator takes time proportional to the depth for each module.
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        module = unwrapped(module)
        if module in seen:
            continue
        seen.add(module)
        yield name, module
        prefix = f"{name}." if name else ""
        children = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
        waiting.extend(reversed(children))


def batchnorm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of a model by name, in the order of ``named_modules``.

    The names are those of the bare model (:func:`unwrapped`), so statistics of a wrapped or compiled model fit the
    model itself and the other way round.

    Raises:
        UserError: if there are none; if one is lazy and has not seen its first batch; if one is quantized, scripted,
            traced or exported, because its statistics are then compiled in and cannot be replaced.
    """
    found = dict(named_modules(model))
    layers = {name: module for name, module in found.items() if isinstance(module, _BatchNorm)}
    for name, module in found.items():
        if isinstance(module, _BatchNorm) and isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise UserError(f"layer {name!r} is lazy and has no channels yet: run one batch through the model first")
        reason = _compiled_in(module)
        if reason:
            raise UserError(f"{_called(name, module)} {reason}: use the model from before that step")
    if not layers:
        raise UserError(
            f"{type(unwrapped(model)).__name__} has no BatchNorm layer, so it keeps no statistics to read, estimate or "
            f"replace{_and_others(model)}"
        )
    return layers


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer of the model keeps or computes batch statistics; frozen and compiled-in layers do not."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def fixed_layers(model: nn.Module) -> dict[str, str]:
    """Layers that keep running statistics and are not BatchNorm, name -> class: FrozenBatchNorm2d, InstanceNorm2d.

    They go on using what they keep, under all statistics.
    """
    return {
        name: type(module).__name__
        for name, module in named_modules(model)
        if not isinstance(module, (_BatchNorm, ScriptModule))
        and isinstance(module._buffers.get("running_mean"), Tensor)
        and isinstance(module._buffers.get("running_var"), Tensor)
    }


def listed(names: list[str], at_most: int = 6) -> str:
    """Layer names for a message, the first few of them."""
    shown = ", ".join(repr(name) for name in names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


def _and_others(model: nn.Module) -> str:
    """What looks like BatchNorm in a model that has none."""
    fixed = fixed_layers(model)
    if fixed:
        kinds = ", ".join(sorted(set(fixed.values())))
        return f"; {listed(list(fixed))} ({kinds}) keep statistics that are fixed"
    if any(".quantized" in type(module).__module__ for module in model.modules()):
        return "; quantizing folds BatchNorm into the convolutions: use the model from before that step"
    return ""


def _compiled_in(module: nn.Module) -> str:
    """Why this module's statistics cannot be replaced, or nothing."""
    if isinstance(module, _BatchNorm) and ".quantized" in type(module).__module__:
        return "is quantized, so it always normalises with its own running statistics"
    if isinstance(module, ScriptModule):
        # A BatchNorm inside is listed as a module of its own, by its original name, if the graph was not frozen.
        if any("BatchNorm" in part.original_name for part in module.modules() if isinstance(part, ScriptModule)):
            return "is scripted or traced, which compiles its BatchNorm's statistics in"
    elif isinstance(module, GraphModule):
        calls = (str(node.target) for node in module.graph.nodes if node.op == "call_function")
        if any("batch_norm" in target for target in calls):
            return "is an exported graph, which calls batch_norm with fixed statistics"
    return ""


def _called(name: str, module: nn.Module) -> str:
    return f"layer {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
