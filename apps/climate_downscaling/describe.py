"""`info`: what is in a model folder or a data file, in words."""

from __future__ import annotations

from pathlib import Path

from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.model import DownscalingModel
from core.cards import model_card
from core.checkpoint import META, load_checkpoint
from core.errors import AleatorError


def describe(thing: str) -> str:
    """Describe a model folder or a data file.

    Args:
        thing: its path.

    Raises:
        AleatorError: it is neither.
    """
    path = Path(thing)
    if (path / META).exists():
        return describe_model(path)
    if path.is_dir() and not any((path / n).exists() for n in ("zarr.json", ".zgroup")):
        raise AleatorError(f"{path}: neither a model (no {META} in it) nor a Zarr store")
    field = open_field(thing, ensemble=True)
    recorded = field.attributes.get("aleator_model")
    made = [f"  made by: downscaling model {recorded}"] if recorded else []
    return "\n".join([field.describe(), *made])


def describe_model(folder: Path) -> str:
    """What a model is, what it was trained on and how well it does."""
    model = DownscalingModel.load(folder)
    config = model.config
    written = load_checkpoint(folder).versions
    facts = [
        f"{folder}: downscaling model {model.fingerprint}",
        f"  variables: {', '.join(f'{v.name} ({v.units})' for v in model.variables)}",
        f"  from: {model.coarse_grid.describe()}",
        f"  to:   {model.fine_grid.describe()}",
        *(f"  {line}" for line in model.describe()),
        f"  residual: {config.residual.family}, {config.residual.context} context, "
        f"sampler {dict(config.residual.sampler)}",
        f"  clock: {', '.join(model.clock) or 'none'}",
        f"  written with: {', '.join(f'{k} {v}' for k, v in written.items())}",
        "",
        model_card(model.card or {}),
    ]
    return "\n".join(facts)
