"""Rules that bring images to a feature network: its input size and pixel scale, one name for both.

Each is a function of uint8 images (N,3,R,R) and gives float32 (N,3,299,299), those named `..._224` (N,3,224,224) and
`native` (N,3,R,R), on the device of its input. With one and the same network two rules differ by several per cent in
distance, so that every number names its rule.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_utils.images import to_float

INCEPTION_SIZE, RESNET_SIZE, DINOV2_SIZE = 299, 224, 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bilinear_corners(images: Tensor, size: int = INCEPTION_SIZE) -> Tensor:
    """ImageNet's mean and deviation, then bilinear with aligned corners: the reference family's."""
    return _interpolate(_normalised(images.float()), size, align_corners=True)


def bilinear_corners_224(images: Tensor) -> Tensor:
    """`bilinear_corners` at ResNet's size: the `resnet50` embedding of Instance Selection (DeVries et al. 2020)."""
    return bilinear_corners(images, RESNET_SIZE)


def bilinear_corners_transform_input(images: Tensor) -> Tensor:
    """`bilinear_corners`, then torchvision's `transform_input`: the `inceptionv3` embedding of Instance Selection.

    That transform undoes the normalisation and brings pixels to [-1,1]; as it commutes with resizing, this is all.
    """
    return _interpolate(to_float(images), INCEPTION_SIZE, align_corners=True)


def tf1(images: Tensor) -> Tensor:
    """TensorFlow 1's bilinear, then (x - 128) / 128: torch-fidelity's and StyleGAN's; the original FID's."""
    return (_tf1_axis(_tf1_axis(images.float(), 3), 2) - 128) / 128


def _tf1_axis(x, dim):
    """One dimension of (N,3,H,W) to 299: pixel i is taken from i H / 299, clamped at the far border."""
    length = x.shape[dim]
    source = torch.arange(INCEPTION_SIZE, dtype=torch.float32, device=x.device) * (length / INCEPTION_SIZE)
    low = source.long()
    weight = (source - low).view(-1, *[1] * (3 - dim))
    before, after = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=length - 1))
    return before + (after - before) * weight


def bilinear(images: Tensor) -> Tensor:
    """Bilinear between pixel centres, not anti-aliased, then [-1,1]: pytorch-fid's."""
    return _interpolate(images.float() / 255, INCEPTION_SIZE, align_corners=False) * 2 - 1


def pil_bicubic(images: Tensor) -> Tensor:
    """Anti-aliased bicubic as Pillow's, in float, cut to [0,255], then (x - 128) / 128: clean-fid's "clean" mode.

    It is PyTorch's own, which equals Pillow's on float images to 0.003 grey levels and stays on the device.
    mmgeneration's Inception score also rounds the resized image to uint8, which is not done here.
    """
    return (_pil_bicubic(images, INCEPTION_SIZE) - 128) / 128


def pil_bicubic_224(images: Tensor) -> Tensor:
    """The same at DINOv2's size, then ImageNet's mean and deviation: FD-DINOv2's (Stein et al. 2023; EDM2's code).

    The former round the resized image to uint8, the latter do not cut it: neither is done here.
    """
    return _normalised(_pil_bicubic(images, DINOV2_SIZE))


def _pil_bicubic(images, size):
    x = _interpolate(images.float(), size, align_corners=False, mode="bicubic", antialias=True)
    return x.clamp(0, 255)


def _normalised(x):
    """Pixels of 0 to 255, less ImageNet's mean and divided by its deviation."""
    mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x / 255 - mean) / std


def _interpolate(x, size, align_corners, mode="bilinear", antialias=False):
    return F.interpolate(x, size=(size, size), mode=mode, align_corners=align_corners, antialias=antialias)


RESIZE_RULES = {
    "bilinear_corners": bilinear_corners,
    "bilinear_corners_224": bilinear_corners_224,
    "bilinear_corners_transform_input": bilinear_corners_transform_input,
    "tf1": tf1,
    "bilinear": bilinear,
    "pil_bicubic": pil_bicubic,
    "pil_bicubic_224": pil_bicubic_224,
    "native": to_float,
}
