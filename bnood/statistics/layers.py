"""Finding the BatchNorm layers of a model, whatever it is wrapped in, and saying why there are none."""

from collections.abc import Iterator, Mapping

from torch import nn
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
        if not isinstance(model, nn.Module):
            raise UserError(f"the model is a {type(model).__name__}; expected a torch.nn.Module (a Network's .model)")
        if isinstance(model, (DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif type(model).__module__.startswith("torch._dynamo"):  # importing its class would import the compiler
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As torch's ``named_modules``, with the names of the bare model: wrappers leave no trace in them."""
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        module = unwrapped(module)
        if module not in seen:
            seen.add(module)
            yield name, module
            prefix = f"{name}." if name else ""
            children = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
            waiting.extend(reversed(children))


def batchnorm_layers(model: nn.Module, modules: Mapping[str, nn.Module] | None = None) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of a model by the names of the bare model (:func:`unwrapped`), in the order of its modules.

    ``modules`` is what :func:`named_modules` gives, where it is known already. Raises ``UserError`` if there are none,
    one is lazy and has not seen its first batch, or one is quantized, scripted, traced or exported: compiled in.
    """
    layers = _found(modules or dict(named_modules(model)))
    if not layers:
        because = ""
        if fixed := fixed_layers(model):
            because = f"; {fixed}"
        elif any(".quantized" in type(module).__module__ for module in model.modules()):
            because = "; quantizing folds BatchNorm into the convolutions: use the model from before"
        kind = type(unwrapped(model)).__name__
        raise UserError(f"{kind} has no BatchNorm layer, so it keeps no statistics to read or replace{because}")
    return layers


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer of the model keeps or computes batch statistics; UserError as for :func:`batchnorm_layers`."""
    return bool(_found(dict(named_modules(model))))


def _found(modules: Mapping[str, nn.Module]) -> dict[str, _BatchNorm]:
    layers: dict[str, _BatchNorm] = {}
    for name, module in modules.items():
        where = f"layer {name!r}" if name else "the model"
        if reason := _compiled_in(module):
            raise UserError(f"{where} ({type(module).__name__}) {reason}: use the model from before that step")
        if any(one is not None and one.is_meta for one in (*module._parameters.values(), *module._buffers.values())):
            raise UserError(f"{where} is on the meta device, which holds no values: load its weights first")
        if isinstance(module, _BatchNorm):
            if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
                raise UserError(f"{where} is lazy and has no channels yet: run one batch through the model first")
            layers[name] = module
    return layers


def fixed_layers(model: nn.Module) -> str:
    """Which layers keep statistics that none in use replace (FrozenBatchNorm2d, EvoNorm, ...), as words; or nothing."""
    fixed = {
        name: type(module).__name__
        for name, module in named_modules(model)
        if not isinstance(module, (_BatchNorm, ScriptModule))
        and any(module._buffers.get(key) is not None for key in ("running_mean", "running_var"))
    }
    kinds = ", ".join(sorted(set(fixed.values())))
    return f"{listed(list(fixed))} ({kinds}) keep fixed statistics" if fixed else ""


def listed(names: list[str], at_most: int = 6) -> str:
    """Layer names for a message, the first few of them."""
    shown = ", ".join(repr(name) for name in names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


def _compiled_in(module: nn.Module) -> str:
    """Why this module's statistics cannot be replaced, or nothing."""
    if isinstance(module, _BatchNorm) and ".quantized" in type(module).__module__:
        return "is quantized, so it always normalises with its own running statistics"
    if isinstance(module, ScriptModule):
        # BatchNorm inside is listed by its original name, unless the graph was frozen.
        parts = [part for part in module.modules() if isinstance(part, ScriptModule)]
        if not hasattr(module, "training") or any("BatchNorm" in part.original_name for part in parts):
            return "is scripted or traced, which compiles its BatchNorm's statistics in"
    elif isinstance(module, GraphModule) and any(
        "batch_norm" in str(node.target) for node in module.graph.nodes if node.op == "call_function"
    ):
        return "is an exported graph, which calls batch_norm with fixed statistics"
    return ""
