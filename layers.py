"""Building blocks of the networks: spectral norm, resampling convolutions, batch norm, attention, blocks, init.

Symbols in shape comments: N batch, C channels, H and W height and width, K classes, S size of a condition vector.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torch_utils import cross_replica
from torch_utils.precision import no_autocast, widened

POWER_ITERATIONS = 100  # on the spectral-norm vectors of a matrix that has been made anew


class SpectralNorm:
    """Mixin of a layer with a `weight`: with `sn`, the layer uses weight / sigma (Miyato et al. 2018, equation 8).

    sigma = u' W v approximates the largest singular value of W, the weight flattened to (outputs, rest). Each training
    forward runs one power iteration on u and v (their algorithm 1); evaluation uses u and v as they are. Gradients
    flow through sigma but not through u and v. All of it has the weight's own type, also under autocast: what u and v
    lose to 8 bits in one step, the next ones never win back.
    """

    def _init_spectral_norm(self, sn, eps):
        self.sn, self.sn_eps = sn, eps
        if sn:
            rows, columns = self.weight.flatten(1).shape
            self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))
            self.register_buffer("v", F.normalize(torch.randn(columns), dim=0))

    @torch.no_grad()
    def power_iteration(self) -> tuple[Tensor, Tensor]:
        """One step of u and v towards the leading singular vectors; returns them as (outputs,) and (rest,)."""
        W = self.weight.flatten(1)
        v = F.normalize(W.t() @ self.u, dim=0, eps=self.sn_eps)
        u = F.normalize(W @ v, dim=0, eps=self.sn_eps)
        self.u.copy_(u)  # the graph of this forward keeps the fresh tensors, so a later one cannot spoil its backward
        self.v.copy_(v)
        return u, v

    def normalized_weight(self) -> Tensor:
        if not self.sn:
            return self.weight
        with no_autocast(self.weight.device.type):
            u, v = self.power_iteration() if self.training else (self.u.clone(), self.v.clone())
            return self.weight / (u @ (self.weight.flatten(1) @ v))


def settle(modules: Iterable[nn.Module]) -> None:
    """Bring the spectral-norm vectors of layers to the singular vectors of weights that they were not made for."""
    for layer in modules:
        for _ in range(POWER_ITERATIONS if isinstance(layer, SpectralNorm) and layer.sn else 0):
            layer.power_iteration()


@torch.no_grad()
def singular_values(**networks: nn.Module) -> dict[str, float]:
    """sigma = u' W v of every layer with spectral norm, by "G/<layer>": what it divides its weight by, as it stands."""
    sigmas = {
        f"{name}/{path}": layer.u @ (layer.weight.flatten(1) @ layer.v)
        for name, network in networks.items()
        for path, layer in network.named_modules()
        if isinstance(layer, SpectralNorm) and layer.sn
    }
    values = torch.stack(list(sigmas.values())).tolist() if sigmas else []  # one wait for a GPU, not one per layer
    return dict(zip(sigmas, values, strict=True))


class Conv2d(SpectralNorm, nn.Conv2d):
    """Convolution that keeps the size: (N,C,H,W) to (N,C',H,W)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True, sn: bool = False, eps=1e-8
    ):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self._init_spectral_norm(sn, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalized_weight(), self.bias, padding=self.padding)


class Linear(SpectralNorm, nn.Linear):
    def __init__(self, in_features: int, out_features: int, bias: bool = True, sn: bool = False, eps: float = 1e-8):
        super().__init__(in_features, out_features, bias=bias)
        self._init_spectral_norm(sn, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalized_weight(), self.bias)


class Embedding(SpectralNorm, nn.Embedding):
    def __init__(self, num_embeddings: int, dim: int, sn: bool = False, eps: float = 1e-8):
        super().__init__(num_embeddings, dim)
        self._init_spectral_norm(sn, eps)

    def forward(self, y: Tensor) -> Tensor:  # y (N,) int64 class ids; or (N,K) float class weights, to blend classes
        weight = self.normalized_weight()
        return y @ weight if y.is_floating_point() else F.embedding(y, weight)


def _sum_of_neighbours(x):
    """x[i] + x[i + 1] along both of the last dimensions: (...,K,L) to (...,K-1,L-1)."""
    x = x[..., 1:] + x[..., :-1]
    return x[..., 1:, :] + x[..., :-1, :]


class _ConvolveWithOnes(torch.autograd.Function):
    """Full convolution of each 3x3 kernel with ones(2,2): (A,B,3,3) to (A,B,4,4).

    Its transpose is the same sum without the padding, which autograd would compute by way of eight padded copies.
    """

    @staticmethod
    def forward(ctx, weight):
        return _sum_of_neighbours(F.pad(weight, (1, 1, 1, 1)))

    @staticmethod
    def backward(ctx, gradient):
        return _sum_of_neighbours(gradient)


# Both convolutions that resample keep the state dict of the plain 3x3 (or 1x1) convolution; `fused = False` on an
# instance computes the plain composition instead, to which the fused form is equal (tests/test_layers.py).
class UpConv2d(Conv2d):
    """Nearest-neighbour upsampling by 2, then convolution: (N,C,H,W) to (N,C',2H,2W).

    A pixel of the low-resolution map is seen by up to 4 taps of the 3x3 kernel, which can be added up beforehand: a
    transposed convolution with a 4x4 kernel and stride 2 does 16 instead of 36 multiplications per such pixel.
    conv_transpose2d convolves where conv2d correlates, hence the flip. A 1x1 convolution commutes with the upsampling.
    """

    fused = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return super().forward(upsample(x))
        if self.kernel_size == (1, 1):
            return upsample(super().forward(x))
        kernel = _ConvolveWithOnes.apply(self.normalized_weight().flip(2, 3)).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class DownConv2d(Conv2d):
    """Convolution, then 2x2 mean pooling: (N,C,H,W) to (N,C',H/2,W/2).

    The mean of 4 neighbouring outputs is a 4x4 convolution with stride 2; a 1x1 convolution commutes with the pooling.
    """

    fused = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return F.avg_pool2d(super().forward(x), 2)
        if self.kernel_size == (1, 1):
            return super().forward(F.avg_pool2d(x, 2))
        kernel = _ConvolveWithOnes.apply(self.normalized_weight() / 4)
        return F.conv2d(x, kernel, self.bias, stride=2, padding=1)


def upsample(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2: (N,C,H,W) to (N,C,2H,2W)."""
    with no_autocast(x.device.type):  # which on CPUs makes it float32
        return F.interpolate(x, scale_factor=2, mode="nearest")


class BatchNorm2d(cross_replica.BatchNorm2d):
    """Affine batch norm that takes, and ignores, a condition, so that blocks need not ask which norm they hold."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x)


class _NormalizeModulate(torch.autograd.Function):
    """(x - mean) / std * gain + bias with the mean and variance of a batch: x (N,C,H,W), gain and bias (N,C,1,1).

    Plain autograd would keep the normalised map beside x for its backward; it is as soon made again, bit by bit.
    """

    @staticmethod
    def forward(ctx, x, gain, bias, running_mean, running_var, momentum, eps):
        moments = running_mean, running_var, True, momentum, eps
        normalised, mean, rstd = torch.native_batch_norm(x, None, None, *moments)
        ctx.save_for_backward(x, gain, mean, rstd)
        ctx.eps = eps
        return torch.addcmul(bias, normalised, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, gain, mean, rstd = ctx.saved_tensors
        one = torch.ones_like(rstd)  # as a variance without eps
        normalised = torch.native_batch_norm(x, rstd, torch.zeros_like(one), mean, one, False, 0.0, 0.0)[0]
        of_gain, of_bias = (gradient * normalised).sum((2, 3), keepdim=True), gradient.sum((2, 3), keepdim=True)
        del normalised
        moments = None, None, mean, rstd, True, ctx.eps
        of_x = torch.ops.aten.native_batch_norm_backward(gradient * gain, x, None, *moments, (True, False, False))[0]
        return of_x, of_gain, of_bias, None, None, None, None


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm, then a gain and a bias per sample and channel from a condition (de Vries et al. 2017).

    The gain is 1 + gain(condition), so that zero weights mean plain batch norm. The condition is a class id (N,) if
    `condition_dim` is None, looked up in an Embedding of `num_classes` rows; otherwise a vector (N,S), mapped by a
    Linear without bias. `sn` is the spectral norm of either.
    """

    def __init__(self, channels: int, condition_dim: int | None, num_classes: int, sn: dict, eps: float = 1e-5):
        super().__init__()
        self.bn = cross_replica.BatchNorm2d(channels, eps=eps, affine=False)
        if condition_dim is None:
            self.gain, self.bias = (Embedding(num_classes, channels, **sn) for _ in range(2))
        else:
            self.gain, self.bias = (Linear(condition_dim, channels, bias=False, **sn) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # x (N,C,H,W), condition (N,) or (N,S)
        gain = 1 + self.gain(condition)  # (N,C)
        bias = self.bias(condition)  # (N,C)
        if self.bn.alone and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gain, bias = (t.to(x.dtype)[:, :, None, None] for t in (gain, bias))
            return _NormalizeModulate.apply(x, gain, bias, *self.bn.tracked())
        if self.training or x.dtype != self.bn.running_var.dtype:
            x = self.bn(x)
        else:  # the normalisation is affine too: one multiply-add per element does both
            gain = gain * torch.rsqrt(self.bn.running_var + self.bn.eps)
            bias = bias - gain * self.bn.running_mean
        gain, bias = (t.to(x.dtype)[:, :, None, None] for t in (gain, bias))  # float32 would make the maps float32
        return torch.addcmul(bias, x, gain)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key') value, the softmax in float32: (N,L,d), (N,M,d), (N,M,e) to (N,L,e), d at most e.

    GPUs have kernels that never hold all L x M weights, for d = e: query and key get zeros. On CPUs plain products are
    faster, in bfloat16 twice.
    """
    if query.is_cuda:
        query, key = (F.pad(x, (0, value.shape[-1] - x.shape[-1])) for x in (query, key))
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0).squeeze(1)
    with no_autocast(query.device.type):
        scores = widened(query) @ widened(key).transpose(1, 2)  # (N,L,M)
    return torch.softmax(scores, dim=-1).to(value.dtype) @ value


class SelfAttention(nn.Module):
    """x + gamma * o(softmax(theta' phi) g) over positions (Zhang et al. 2019, section 3), gamma starting at 0.

    As in the BigGAN line, keys and values (phi, g) are max-pooled by 2, theta and phi have C/8 and g has C/2 channels,
    and the softmax is over all pooled positions, without scaling.
    """

    def __init__(self, channels: int, sn: dict):
        super().__init__()
        key_channels, value_channels = max(channels // 8, 1), max(channels // 2, 1)
        self.theta = Conv2d(channels, key_channels, 1, bias=False, **sn)
        self.phi = Conv2d(channels, key_channels, 1, bias=False, **sn)
        self.g = Conv2d(channels, value_channels, 1, bias=False, **sn)
        self.o = Conv2d(value_channels, channels, 1, bias=False, **sn)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:  # (N,C,H,W) to the same
        query = self.theta(x).flatten(2).transpose(1, 2)  # (N,HW,C/8)
        key = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)  # (N,HW/4,C/8)
        value = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)  # (N,HW/4,C/2)
        attended = attend(query, key, value)  # (N,HW,C/2)
        attended = attended.transpose(1, 2).unflatten(2, x.shape[2:])  # (N,C/2,H,W)
        return x + self.gamma * self.o(attended)

    def weights(self, x: Tensor, positions: Tensor) -> Tensor:
        """The softmax at some positions, int64 (P,) of the HW of x (N,C,H,W): (N,P,H/2,W/2), each map adds up to 1."""
        query = self.theta(x).flatten(2)[:, :, positions].transpose(1, 2)  # (N,P,C/8)
        key = F.max_pool2d(self.phi(x), 2)  # (N,C/8,H/2,W/2)
        scores = widened(query) @ widened(key).flatten(2)  # (N,P,HW/4)
        return torch.softmax(scores, dim=-1).unflatten(2, key.shape[2:])


class GBlock(nn.Module):
    """BN-ReLU-up-conv3-BN-ReLU-conv3 with shortcut up-conv1 (Brock et al. 2019, figure 15b): (N,C,H,W) to (N,C',2H,2W).

    `norm` makes a normalisation layer for a number of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Callable, sn: dict):
        super().__init__()
        self.bn1, self.bn2 = norm(in_channels), norm(out_channels)
        self.conv1 = UpConv2d(in_channels, out_channels, **sn)
        self.conv2 = Conv2d(out_channels, out_channels, **sn)
        self.conv_sc = UpConv2d(in_channels, out_channels, 1, **sn)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.conv1(F.relu(self.bn1(x, condition)))
        h = self.conv2(F.relu(self.bn2(h, condition)))
        return h + self.conv_sc(x)


class DBlock(nn.Module):
    """(ReLU)-conv3-ReLU-conv3-(pool) with shortcut conv1-(pool) (Brock et al. 2019, figure 15c).

    (N,C,H,W) to (N,C',H/2,W/2), or to (N,C',H,W) without `down`. The first block of a D sees the image and has no first
    ReLU. `wide` blocks widen in conv1, thin ones (SNGAN) in conv2. Without `down` and with C = C' the shortcut is x.
    With `relu_shortcut` the shortcut of all but the first block sees relu(x): the effect of an in-place first ReLU.
    """

    def __init__(
        self, in_channels: int, out_channels: int, sn: dict, down=True, first=False, wide=True, relu_shortcut=False
    ):
        super().__init__()
        self.first, self.relu_shortcut = first, relu_shortcut
        hidden = out_channels if wide else in_channels
        conv = DownConv2d if down else Conv2d
        self.conv1 = Conv2d(in_channels, hidden, **sn)
        self.conv2 = conv(hidden, out_channels, **sn)
        changes = down or in_channels != out_channels
        self.conv_sc = conv(in_channels, out_channels, 1, **sn) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = x if self.first else F.relu(x)
        h = self.conv2(F.relu(self.conv1(activated)))
        return h + self.conv_sc(activated if self.relu_shortcut else x)


def init_weights(module: nn.Module, scheme: str) -> None:
    """Initialise every convolution, linear layer and embedding of `module`; biases of convolutions and linears are 0.

    scheme: 'ortho' (rows or columns of the flattened weight orthonormal), 'xavier' (Glorot uniform), or 'N02'
    (normal with standard deviation 0.02). Spectral-norm vectors take one power iteration, so that a network that has
    never been trained can be evaluated.
    """
    schemes = {
        "ortho": nn.init.orthogonal_,
        "xavier": nn.init.xavier_uniform_,
        "N02": lambda weight: nn.init.normal_(weight, std=0.02),
    }
    for layer in module.modules():
        if isinstance(layer, SpectralNorm):
            schemes[scheme](layer.weight)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)
            if layer.sn:
                layer.power_iteration()
