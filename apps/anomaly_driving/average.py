r"""One model from several that grew from the same one: the mean of their weights.

    θ = Σ_i w_i θ_i

Models that were trained on from a common start, on different pictures, lie in one basin, and
their mean often holds better on foreign data than each of them (Wortsman et al. 2022,
arXiv:2203.05482).

    python -m apps.anomaly_driving.average OUT MODEL MODEL ... [--weights 0.5,0.5]

The generator of negatives is that of the last model that has one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from apps.anomaly_driving.model import APP, OWN, AnomalyModel, from_checkpoint
from core.cards import write_card
from core.checkpoint import load_checkpoint
from core.errors import AleatorError


def average(
    output: Path, folders: Sequence[Path], weights: Sequence[float] | None = None
) -> AnomalyModel:
    """Save the weighted mean of models, batch norms' statistics included.

    Args:
        output: folder for the model.
        folders: of models of one network and the same classes.
        weights: one each, summing to 1; all alike if None.

    Raises:
        AleatorError: fewer than two models, other networks or classes, weights that do not sum
            to 1, or a model is there already.
    """
    weights = list(weights or [1 / len(folders)] * len(folders))
    if len(folders) < 2:
        raise AleatorError("a mean of models needs at least two")
    if len(weights) != len(folders) or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise AleatorError(f"weights {weights}: {len(folders)} that sum to 1 are needed")
    if (output / "model.json").exists():
        raise AleatorError(f"{output} holds a model; choose another folder")
    checkpoints = [load_checkpoint(folder, app=APP) for folder in folders]
    models = [
        from_checkpoint(found, str(folder))
        for found, folder in zip(checkpoints, folders, strict=True)
    ]
    for folder, model in zip(folders, models, strict=True):
        if model.config != models[0].config:
            raise AleatorError(f"{folder}: another network or other classes than {folders[0]}")
    states = [model.state_dict() for model in models]
    merged = {name: _mean([state[name] for state in states], weights) for name in states[0]}
    models[0].load_state_dict(merged)
    with_generator = [c for c in checkpoints if any(not n.startswith(OWN) for n in c.tensors)]
    last = (with_generator or checkpoints)[-1]
    names = ", ".join(
        f"{w:g} of {c.fingerprint}" for w, c in zip(weights, checkpoints, strict=True)
    )
    card = {**last.card, "scores": [], "average": f"the weights are the mean: {names}"}
    models[0].save(
        output,
        card=card,
        data_fingerprint=last.data_fingerprint,
        more={name: value for name, value in last.tensors.items() if not name.startswith(OWN)},
        notes=last.config.get("notes", {}),
    )
    if last.card:
        write_card(output / "card.md", card)
    return models[0]


def _mean(values: list[Tensor], weights: Sequence[float]) -> Tensor:
    if not values[0].is_floating_point():
        return values[-1]
    total = sum(w * value.double() for w, value in zip(weights, values, strict=True))
    assert isinstance(total, Tensor)
    return total.to(values[0])


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and average."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument(
        "--weights", type=numbers, help="comma-separated, summing to 1; default: all alike"
    )
    options = parser.parse_args(arguments)
    try:
        average(options.output, options.models, options.weights)
    except AleatorError as error:
        parser.exit(2, f"error: {error}\n")


def numbers(text: str) -> list[float]:
    """Of a comma-separated list; argparse tells the user where it is none."""
    return [float(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
