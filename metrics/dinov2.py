"""DINOv2's ViT-L/14 (Oquab et al. 2023, arXiv:2304.07193), whose class token is FD-DINOv2's (Stein et al. 2023).

A vision transformer (Dosovitskiy et al. 2021) with a learned scale after each branch. Its position embedding is of
37x37 patches, from training at 518 pixels, and is interpolated to the 16x16 of 224 pixels.
Symbols: N images, P patches, D width, h heads.
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, DEPTH, HEADS = 1024, 24, 16  # of ViT-L
PATCH, GRID = 14, 37  # pixels of a patch's side; patches that the position embedding was trained for
EPS = 1e-6  # of the layer norms
# The released code scales to a tenth of a patch more than there are, lest rounding lose one: that is the scale of the
# interpolation, and so the features depend on it.
OFFSET = 0.1


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (N,1+P,D)
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3,N,h,1+P,D/h)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (N,1+P,D)
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width, EPS), Attention(width, heads), LayerScale(width)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width, EPS), MLP(width), LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:  # (N,1+P,D)
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINOv2(nn.Module):
    """(N,3,S,S), S a multiple of 14, to the class token of the last norm (N,D), and logits of no class (N,0)."""

    num_classes = 0

    def __init__(self, weights: dict | None = None):
        """weights: the released state dict, or None for random ones. Raises: as load_state_dict for another's."""
        super().__init__()
        self.feature_dim = WIDTH
        # The weights that it begins with would take longer to draw than those of a file to read.
        with torch.device("meta") if weights is not None else contextlib.nullcontext():
            self.cls_token, self.mask_token = (nn.Parameter(torch.zeros(*n, WIDTH)) for n in ((1, 1), (1,)))
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, WIDTH))
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
            self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(DEPTH))
            self.norm = nn.LayerNorm(WIDTH, EPS)
        if weights is not None:
            self.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patch_embed["proj"](x)  # (N,D,S/14,S/14)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)  # (N,1+P,D)
        x = x + self.positions(patches.shape[-1])
        for block in self.blocks:
            x = block(x)
        features = self.norm(x)[:, 0]  # (N,D)
        return features, features[:, :0]

    def positions(self, grid: int) -> Tensor:
        """The position embedding of the class token and of grid x grid patches: (1,1+P,D)."""
        if grid == GRID:
            return self.pos_embed
        of_patches = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))  # (1,D,37,37)
        scale = (grid + OFFSET) / GRID
        of_patches = F.interpolate(of_patches, scale_factor=(scale, scale), mode="bicubic")  # (1,D,grid,grid)
        return torch.cat([self.pos_embed[:, :1], of_patches.flatten(2).transpose(1, 2)], dim=1)
