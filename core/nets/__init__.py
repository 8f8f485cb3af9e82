"""Networks: (x (B, *E), noise level (B,), context) -> (B, *E)."""

from core.nets.coder import Coder
from core.nets.dit import DiT
from core.nets.mlp import MLP
from core.nets.set_transformer import SetTransformer
from core.nets.unet import UNet

__all__ = ["MLP", "Coder", "DiT", "SetTransformer", "UNet"]
