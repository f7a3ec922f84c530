"""How networks are called where their penultimate features are needed beside their logits."""

import inspect

from torch import nn

from bnood.errors import UserError


def check_gives_features(model: nn.Module) -> None:
    """Check that a network can be called as ``model(images, return_features=True)``, for (logits, features).

    Raises:
        UserError: if its ``forward`` has no such argument.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    if any(one.name == "return_features" or one.kind is one.VAR_KEYWORD for one in parameters):
        return
    raise UserError(
        f"{type(model).__name__} has no argument return_features: expected a network that is called as "
        "model(images, return_features=True), with uint8 images [n, H, W, 3], and gives (logits, features)"
    )
