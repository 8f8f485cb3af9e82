"""How `camvid_model/` was made: a trained model in half precision, with its card.

The commands are those of `COMMANDS`, in this order; the last one is this module.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.fits import FOLDER, fit_scores, save_fits
from apps.anomaly_driving.model import APP, OWN, from_checkpoint
from apps.anomaly_driving.network import open_network
from apps.anomaly_driving.scores import parse
from apps.anomaly_driving.shared import SEEN, digests
from core.cards import write_card
from core.checkpoint import load_checkpoint

OUT = Path(__file__).parent / "camvid_model"
COMMANDS = """python benchmarks/driving.py DATA --models MODELS --rows diffusion --train-only
train="python -m pipelines.driving train DATA/camvid/train" recipes=benchmarks/recipes
average="python -m apps.anomaly_driving.average"
$train -o MODELS/base1000 --config $recipes/driving.json --set fit.stop_at=0
$average MODELS/start MODELS/diffusion_120_0 MODELS/base1000 --weights 0,1  # for the generator
$train -o MODELS/whole --start MODELS/start --config $recipes/driving_whole.json
$train -o MODELS/wide --start MODELS/whole --config $recipes/driving_wide.json
$train -o MODELS/sharp --start MODELS/whole --config $recipes/driving_sharp.json
$average MODELS/both MODELS/wide MODELS/sharp
$train -o MODELS/pale --start MODELS/both --config $recipes/driving_pale.json
$average MODELS/both_pale MODELS/both MODELS/pale
$train -o MODELS/stream --start MODELS/both_pale --config $recipes/driving_stream.json --seed 3
python -m apps.anomaly_driving.samples.make_model MODELS/stream --data DATA \\
    --score {score} --scales {scales} --colours {colours}"""
DATA = (
    "CamVid (Brostow, Fauqueur, Cipolla 2009), 367 training frames of 480x360; research data "
    "without a redistribution licence, not bundled. The negatives are samples of generators "
    "that were trained on the same frames, and textures of no data: no picture of a real object "
    "was used in training."
)
STEPS = (
    "1000 without negatives, 4000 with diffusion samples and textures, then 1000 and 800 of two "
    "kinds; the mean of these two models, 1000 on pictures of pale and turned colours from there, "
    "and the mean of before and after; 1000 with samples of a flow that learns with the network"
)


FIT_EVERY = 12
"""Which of the training frames give an ensemble its scales."""


def main(arguments: list[str] | None = None) -> None:
    """Write the bundled model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid/train")
    parser.add_argument("--score", default="energy", help="the default score of these weights")
    parser.add_argument("--scales", default="1", help="comma-separated, see ModelConfig")
    parser.add_argument("--colours", type=float, default=1.0, help="share, see ModelConfig")
    options = parser.parse_args(arguments)
    found = load_checkpoint(options.model, app=APP)
    card = {**found.card, "data": DATA, "licence": "that of this project; see the data"}
    looks = {name: getattr(options, name) for name in ("score", "scales", "colours")}
    card["command"] = COMMANDS.format(**looks)
    card["scores"] = [row for row in found.card.get("scores", []) if row]
    card["measured"] = "benchmarks/results/driving_bundled.md"
    card["steps"] = STEPS
    card["score"] = ",".join(parse(options.score))
    seen = digests(sorted((options.data / "camvid" / "train" / "images").iterdir()))
    model = from_checkpoint(found, str(options.model))
    scales = tuple(float(scale) for scale in options.scales.split(","))
    model.config = dataclasses.replace(model.config, scales=scales, colours=options.colours)
    model.save(
        OUT,
        card=card,
        data_fingerprint=found.data_fingerprint,
        more={k: v for k, v in found.tensors.items() if not k.startswith(OWN)},
        notes=found.config.get("notes", {}) | {SEEN: seen},
        half=True,
    )
    write_card(OUT / "card.md", card)
    fit(OUT, parse(options.score), options.data / "camvid" / "train")


def fit(folder: Path, scores: Sequence[str], frames: Path) -> None:
    """Fit what the default scores need to known frames, and keep it with the model."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    network, known = open_network(folder), open_data(frames)
    part = dataclasses.replace(known, frames=known.frames[::FIT_EVERY])
    save_fits(folder, fit_scores(network, part.samples, scores), network.model.fingerprint)


if __name__ == "__main__":
    main()
