"""What the commands score, benchmark, calibrate and export do; refusals come before computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from apps.anomaly_driving.calibrate import (
    Calibration,
    Target,
    Threshold,
    save_thresholds,
)
from apps.anomaly_driving.data import Driving
from apps.anomaly_driving.evaluation import (
    Evaluated,
    Options,
    closed_miou,
    evaluate,
    must_know_classes,
)
from apps.anomaly_driving.film import score_film
from apps.anomaly_driving.fits import fit_scores, save_fits
from apps.anomaly_driving.network import Network, Scorer
from apps.anomaly_driving.pixel_metrics import frame_counts
from apps.anomaly_driving.plots import precision_recall
from apps.anomaly_driving.score import Writing, score_images
from apps.anomaly_driving.scores import DEFAULT, available, parse
from apps.anomaly_driving.segment_metrics import TRACKS, Sizes
from apps.anomaly_driving.shared import must_not_share, trained_on
from apps.anomaly_driving.sources import FromFiles, FromNetwork, Source
from apps.anomaly_driving.tables import difference_table, score_table, threshold_table
from apps.anomaly_driving.using import (
    BUNDLED_IMAGES,
    Picking,
    Say,
    Using,
    default_scores,
    fits_of,
    must_be_folder,
    must_have_head,
    thresholds_of,
)
from apps.anomaly_driving.video import SUFFIXES as FILMS
from core.errors import AleatorError
from core.report import report, write_results, write_text


def score(
    source: Path | None,
    folder: Path,
    using: Using,
    names: str | None = None,
    *,
    picking: Picking | None = None,
    overlays: bool = True,
    open_set: bool = False,
    overwrite: bool = False,
    smooth: float = 1.0,
    say: Say = print,
) -> list[Path]:
    """Score images or a film; the bundled photographs if nothing is given.

    Raises:
        AleatorError: bad images, model or options.
    """
    wanted = parse(names) if names else None
    must_be_folder(folder)
    if source is None and not BUNDLED_IMAGES.is_dir():
        raise AleatorError("no images are bundled with this installation; give a folder")
    film = source if source is not None and source.suffix.lower() in FILMS else None
    if film is None and smooth != 1.0:
        raise AleatorError(f"--smooth is for films ({', '.join(FILMS)}): images have no order")
    data = None if film else (picking or Picking()).open(source or BUNDLED_IMAGES, say)
    network = using.open(say)
    wanted = wanted or default_scores(network)
    fits = fits_of(using, network, wanted)
    must_have_head(network, wanted)
    kept = thresholds_of(using, network, say)
    thresholds = {name: kept[name].value for name in wanted if name in kept}
    writing = Writing(overlays, open_set, thresholds, overwrite)
    if data is not None:
        written = score_images(network, data, wanted, folder, fits=fits, writing=writing, say=say)
    else:
        assert film is not None
        written, flicker = score_film(
            network, film, wanted, folder, fits=fits, writing=writing, weight=smooth
        )
        for name, (before, after) in flicker.items():
            say(f"{name}: flicker {before:.3f} as scored, {after:.3f} as written")
    say(f"{folder}: {len(written)} score files of {', '.join(wanted)}, higher = more unexpected")
    return written


@dataclass(frozen=True)
class Judging:
    """How `benchmark` judges.

    Attributes:
        track: "anomaly" or "obstacle", sizes of segments; the layout's if None.
        score_files: folder of scores to judge instead of a model.
        validation: folder on which thresholds are frozen (best F1); the model's calibration if
            None.
        closed: folder with class labels for the closed mIoU.
        against: score that others are compared with.
        draws: of the bootstrap; 0 for none.
        seed: of the bootstrap.
    """

    track: str | None = None
    score_files: Path | None = None
    validation: Path | None = None
    closed: Path | None = None
    against: str | None = None
    draws: int = 1000
    seed: int = 0

    def sizes(self, data: Driving) -> Sizes:
        """Least components.

        Raises:
            AleatorError: an unknown track.
        """
        track = self.track or data.track
        if track not in TRACKS:
            raise AleatorError(f"--track {track}: known are {', '.join(TRACKS)}")
        return TRACKS[track]


def benchmark(
    source: Path,
    folder: Path,
    using: Using,
    names: str | None = None,
    *,
    picking: Picking | None = None,
    judging: Judging | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Judge scores on a labelled data set: a table, results.json, a figure and pictures.

    Returns:
        `results.json`; `report.md`, `precision_recall.png` and `worst/` are beside it.

    Raises:
        AleatorError: bad data, model, score files or options.
    """
    judging, picking = judging or Judging(), picking or Picking()
    must_be_folder(folder)
    if judging.draws < 0:
        raise AleatorError(f"--draws {judging.draws}: a number of draws, or 0 for no intervals")
    target = folder / "results.json"
    if target.exists() and not overwrite:
        raise AleatorError(f"{target} exists; choose another folder or --overwrite")
    wanted = parse(names) if names and judging.score_files is None else None
    data = picking.open(source, say).labelled()
    sizes = judging.sizes(data)
    network: Network | None = None
    if judging.score_files is not None:
        listed = [name.strip() for name in names.split(",")] if names else []
        scores: Source = FromFiles(judging.score_files, data, listed)
        frozen: dict[str, float] = {}
    else:
        network = using.open(say)
        fits = fits_of(using, network, wanted)
        usual = dict.fromkeys([*default_scores(network), *DEFAULT, *fits])
        chosen = wanted or available(list(usual), head=network.has_head, fits=fits)
        must_have_head(network, chosen)
        scores = FromNetwork(Scorer(network, chosen, fits))
        files = [frame.image for frame in data.frames]
        if seen := trained_on(using.folder, files):
            say(f"warning: {len(seen)} of {len(files)} frames were trained on, e.g. {seen[0]}")
        frozen = _frozen(using, network, scores, judging, picking, files, say)
    if judging.against is not None and judging.against not in scores.names:
        raise AleatorError(
            f"--against {judging.against}: not among the scores ({', '.join(scores.names)})"
        )
    closed = None
    if judging.closed is not None and network is not None:
        closed = Picking(split=picking.split).open(judging.closed, say)
        must_know_classes(network, closed)
    options = Options(sizes, frozen, judging.against, judging.draws, seed=judging.seed)
    found = evaluate(scores, data, options, pictures=folder / "worst", say=say)
    if closed is not None and network is not None:
        miou = closed_miou(network, closed, say)
        for row in found.rows:
            row["closed_miou"] = miou
    return _write(found, data, network, sizes, folder, say)


def _write(
    found: Evaluated,
    data: Driving,
    network: Network | None,
    sizes: Sizes,
    folder: Path,
    say: Say,
) -> Path:
    title = (
        f"{data.root.resolve().name}: {len(data)} frames, layout {data.layout}, segments of at "
        f"least {sizes.predicted} predicted and {sizes.truth} true pixels"
    )
    tables = [score_table(found.rows, title)]
    if found.ap_difference:
        tables.append(difference_table(found.ap_difference, found.against, len(data)))
    results = write_results(
        folder / "results.json",
        tables,
        rows=found.rows,
        intervals={name: asdict(entry) for name, entry in found.ap.items()},
        differences={name: asdict(entry) for name, entry in found.ap_difference.items()},
        against=found.against,
        worst=[{"frame": key, "missed + false": error} for key, error in found.worst],
        data={"layout": data.layout, "frames": len(data), "fingerprint": data.fingerprint()},
        segments=asdict(sizes),
        model=None
        if network is None
        else {
            "fingerprint": network.model.fingerprint,
            "longer_side": network.longer_side,
            "classes": list(network.model.classes),
            "trained_on": getattr(network.model, "card", {}).get("data"),
        },
    )
    write_text(folder / "report.md", report(results, "Unexpected objects"))
    precision_recall(found.curves, folder / "precision_recall.png", data.root.resolve().name)
    for table in tables:
        table.print()
    say(f"{folder}: results.json, report.md, precision_recall.png, worst/")
    return folder / "results.json"


def calibrate(
    source: Path,
    using: Using,
    names: str | None = None,
    *,
    target: Target = "fpr",
    rate: float | None = 0.01,
    level: float = 0.9,
    fit: Path | None = None,
    picking: Picking | None = None,
    seed: int = 0,
    say: Say = print,
) -> dict[str, Threshold]:
    """Fit scores to known images, if asked for, and keep thresholds with the model.

    Raises:
        AleatorError: bad data, model or options, or a rate that cannot be reached.
    """
    picking = picking or Picking()
    network, folder = using.open(say), using.folder
    if folder is None:
        raise AleatorError(f"{using.model}: thresholds are kept in a model folder, not by a file")
    if using.model is None:
        raise AleatorError("the bundled model is not changed: copy its folder and give --model")
    wanted = parse(names) if names else None
    must_have_head(network, wanted or ())
    data = picking.open(source, say)
    if fit is not None:
        known = picking.open(fit, say)
        fits = fit_scores(network, lambda: known.samples(say=say), wanted or (), seed=seed)
        if not fits:
            raise AleatorError("--fit: none of --scores needs a fit; see the list in the guide")
        save_fits(folder, fits, network.model.fingerprint)
        say(f"{folder / 'scores'}: fitted {', '.join(fits)} to {len(known)} images")
    kept = fits_of(using, network, wanted)
    usual = dict.fromkeys([*default_scores(network), *DEFAULT])
    chosen = wanted or available(list(usual), head=network.has_head, fits=kept)
    scorer = Scorer(network, chosen, kept)
    counts = {name: Calibration(name) for name in chosen}
    for sample in data.labelled().samples(say=say):
        assert sample.anomaly is not None
        scored = scorer(sample.image, sample.frame.image)
        for name in chosen:
            counts[name].add(frame_counts(scored.scores[name], sample.anomaly))
    found = {
        name: entry.threshold(
            target,
            rate if target != "f1" else None,
            level=level,
            seed=seed,
            data=data.fingerprint(),
            longer_side=network.longer_side,
        )
        for name, entry in counts.items()
    }
    path = save_thresholds(folder, found, network.model.fingerprint)
    threshold_table(found, len(data)).print()
    say(f"{path}: thresholds of {', '.join(found)}")
    return found


def _frozen(
    using: Using,
    network: Network,
    scores: FromNetwork,
    judging: Judging,
    picking: Picking,
    judged: Sequence[Path],
    say: Say,
) -> dict[str, float]:
    """Thresholds chosen on other frames: best F1 on --validation, or the model's own."""
    if judging.validation is None:
        return {name: t.value for name, t in thresholds_of(using, network, say).items()}
    counts = {name: Calibration(name) for name in scores.names}
    data = Picking(hold_out=picking.hold_out).open(judging.validation, say).labelled()
    must_not_share(judged, [frame.image for frame in data.frames], "thresholds are frozen on")
    for sample in data.samples(say=say):
        assert sample.anomaly is not None
        scored = scores(sample)
        for name in scores.names:
            counts[name].add(frame_counts(scored.scores[name], sample.anomaly))
    return {name: entry.threshold("f1").value for name, entry in counts.items()}
