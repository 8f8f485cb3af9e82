"""How `camvid_model/` was made: a trained model in half precision, with its card.

python benchmarks/driving.py DATA --models MODELS --rows diffusion --train-only
python -m apps.anomaly_driving.samples.make_model MODELS/diffusion_120_0
"""

from __future__ import annotations

import sys
from pathlib import Path

from apps.anomaly_driving.model import APP, OWN, from_checkpoint
from core.cards import write_card
from core.checkpoint import load_checkpoint

OUT = Path(__file__).parent / "camvid_model"
COMMANDS = """python benchmarks/driving.py DATA --models MODELS --rows diffusion --train-only
python -m apps.anomaly_driving.samples.make_model MODELS/diffusion_120_0"""
DATA = (
    "CamVid (Brostow, Fauqueur, Cipolla 2009), 367 training frames of 480x360; research data "
    "without a redistribution licence, not bundled. The negatives are samples of a generator "
    "that was trained on the same frames: no picture of a real object was used."
)


def main(folder: Path) -> None:
    """Write the bundled model."""
    found = load_checkpoint(folder, app=APP)
    card = {**found.card, "data": DATA, "licence": "that of this project; see the data"}
    card["command"] = COMMANDS
    card["scores"] = [row for row in found.card.get("scores", []) if row]
    card["measured"] = "docs/driving.md"
    card["steps"] = f"400 without negatives, {found.card['steps']} with them"
    model = from_checkpoint(found, str(folder))
    model.save(
        OUT,
        card=card,
        data_fingerprint=found.data_fingerprint,
        more={k: v for k, v in found.tensors.items() if not k.startswith(OWN)},
        notes=found.config.get("notes", {}),
        half=True,
    )
    write_card(OUT / "card.md", card)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
