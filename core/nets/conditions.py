"""What a model is conditioned on: which parts of a context it takes, checked before they are used.

A flow without its condition would return the density of something else, so that a part that is
missing, superfluous or of another shape is an error here, not a null condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.nets.embeddings import context_part


@dataclass(frozen=True)
class Conditions:
    """The parts of a context that a model takes; 0 where there is no such part.

    Attributes:
        vector_dim: length of `vector`.
        classes: number of values of `label`; a label of -1 is the null class.
        field_channels: channels of `field`.
    """

    vector_dim: int = 0
    classes: int = 0
    field_channels: int = 0

    @property
    def size(self) -> int:
        """Length of `vector` and the one-hot label together."""
        return self.vector_dim + self.classes

    def vector(self, context: Context, like: Tensor) -> Tensor | None:
        """`vector` and one-hot `label` side by side, (B, size), in the dtype of `like` (B, ...).

        Raises:
            AleatorError: a part is missing or has the wrong shape.
        """
        parts = []
        if self.vector_dim:
            vector = self._part(context, "vector", (self.vector_dim,), len(like))
            parts.append(vector.to(like.dtype))
        if self.classes:
            label = self._part(context, "label", (), len(like))
            values = torch.arange(self.classes, device=label.device)
            parts.append((label[:, None] == values).to(like.dtype))
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def field(self, context: Context, like: Tensor) -> Tensor | None:
        """`field` at the resolution of `like` (B, C, H, W): (B, field_channels, H, W).

        Raises:
            AleatorError: it is missing or has the wrong shape.
        """
        if not self.field_channels:
            return None
        field = self._part(context, "field", (self.field_channels, None, None), len(like))
        field = field.to(like.dtype)
        if field.shape[-2:] == like.shape[-2:]:
            return field
        return F.interpolate(field, like.shape[-2:], mode="bilinear", antialias=True)

    def check(self, context: Context, batch: int | None = None) -> None:
        """Refuse a context that is not of this kind.

        Args:
            context: what the user gave.
            batch: how many examples it is for; any number if None.

        Raises:
            AleatorError: a part is missing, superfluous, not finite, out of range, or of the
                wrong shape.
        """
        shapes: dict[str, tuple[int | None, ...]] = {}
        if self.vector_dim:
            shapes["vector"] = (self.vector_dim,)
        if self.classes:
            shapes["label"] = ()
        if self.field_channels:
            shapes["field"] = (self.field_channels, None, None)
        for name in ("vector", "label", "field"):
            if name not in shapes:
                if context_part(context, name) is not None:
                    raise AleatorError(
                        f"the context has a {name}, but this model was built without one: "
                        f"set {_OPTIONS[name]} in its config"
                    )
                continue
            part = self._part(context, name, shapes[name], batch)
            if not torch.isfinite(part).all():
                raise AleatorError(f"the context's {name} is not finite; mask or fill it first")
            if name == "label" and not ((part >= -1) & (part < self.classes)).all():
                raise AleatorError(
                    f"labels must be in 0..{self.classes - 1} (or -1 for none); got "
                    f"{part.min().item()}..{part.max().item()}"
                )
        if isinstance(context, Tensor) and context.dim() not in (1, 2, 4):
            raise AleatorError(
                f"a context tensor of shape {tuple(context.shape)} is neither a vector (B, D), "
                "a label (B,) nor a field (B, C, H, W)"
            )

    def _part(
        self, context: Context, name: str, shape: tuple[int | None, ...], batch: int | None
    ) -> Tensor:
        part = context_part(context, name)
        expected = ", ".join(["B", *("any" if n is None else str(n) for n in shape)])
        if part is None:
            raise AleatorError(f"this model needs a context with a {name} of shape ({expected})")
        wrong = part.dim() != 1 + len(shape) or any(
            n is not None and n != found for n, found in zip(shape, part.shape[1:], strict=True)
        )
        if wrong:
            raise AleatorError(
                f"the context's {name} has shape {tuple(part.shape)}, expected ({expected})"
            )
        if batch is not None and len(part) != batch:
            raise AleatorError(
                f"the context's {name} has batch size {len(part)}, the examples have {batch}"
            )
        return part


_OPTIONS = {"vector": "vector_dim", "label": "classes", "field": "field_channels"}
