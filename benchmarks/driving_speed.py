"""Images a second of scoring, and what a score costs beside the plain segmenter.

    python benchmarks/driving_speed.py [--model FOLDER] [--sizes 360x480,1024x2048] [--repeats 15]
                                       [--out FOLDER]

Plain is the network and the arg max of its logits at the size of the image. Scoring gives that and
the score in float16, so its time is that of plain and what the score adds. The parts are timed in
turn on the same image, after a warm-up; medians. Time is that of the processor in one thread,
which other work on the machine hardly changes. Without a model the network is built from its
defaults with random weights: that changes no time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from apps.anomaly_driving.files import as_float16
from apps.anomaly_driving.model import AnomalyModel, ModelConfig, load
from apps.anomaly_driving.scores import DEFAULT, predicted_classes, resolve
from core.random import keyed_generator, rand
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent


def measure(model, names, size, repeats):
    """Median seconds of the plain segmenter on one image, and of it with each score."""
    x = rand((1, 3, *size), keyed_generator(0))

    def plain(outputs):
        return predicted_classes(outputs).to(torch.uint8).numpy()

    def scored(function):
        return lambda outputs: as_float16(function(outputs)[0].numpy(), "the image")

    heads = {"plain": plain, **{name: scored(resolve(name, {})) for name in names}}
    seconds = {name: [] for name in ("network", *heads)}
    with torch.inference_mode():
        for turn in range(repeats + 2):
            outputs, taken = timed(model, x)
            times = {"network": taken, **{n: timed(head, outputs)[1] for n, head in heads.items()}}
            if turn >= 2:
                for name, value in times.items():
                    seconds[name].append(value)
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    base = median["network"] + median["plain"]
    return {"plain": base, **{name: base + median[name] for name in names}}


def timed(function, argument):
    """What a function gives, and the seconds of the processor that it took."""
    began = time.process_time()
    found = function(argument)
    return found, time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sizes", default="360x480,1024x2048")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model) if arguments.model else AnomalyModel(ModelConfig()).eval()
    tables = []
    for text in arguments.sizes.split(","):
        height, width = map(int, text.split("x"))
        found = measure(model, DEFAULT, (height, width), arguments.repeats)
        rows = [
            {
                "way": name,
                "rate": 1 / seconds,
                "milliseconds": 1000 * seconds,
                "ratio": seconds / found["plain"],
            }
            for name, seconds in found.items()
        ]
        columns = {
            "way": "score",
            "rate": "images/s, one thread",
            "milliseconds": "CPU ms",
            "ratio": "time, of plain",
        }
        formats = {"rate": ".2f", "milliseconds": ".1f", "ratio": ".3f"}
        tables.append(Table(rows, columns, formats, title=f"{height}×{width}, one image a pass"))
        tables[-1].print()
    parameters = sum(p.numel() for p in model.parameters())
    segmenter = model.config.segmenter
    results = write_results(
        arguments.out / "driving_speed.json",
        tables,
        network=f"{segmenter.arch}, {segmenter.encoder}, {parameters:,} parameters",
    )
    title = f"Speed of scoring ({results['network']})"
    write_text(arguments.out / "driving_speed.md", report(results, title))


if __name__ == "__main__":
    main()
