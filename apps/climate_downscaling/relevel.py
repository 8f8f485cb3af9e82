"""New years for an old model: regression, drift and year effect anew, spread and network kept.

Perfect prognosis is at the level of the year after its training (`drift`). When more years have
come, that level is fitted again, in minutes, where a training of the network takes an hour.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.climate_downscaling.config import Config, read_config
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared, stored_settings
from apps.climate_downscaling.prognosis import PrognosisModel
from apps.climate_downscaling.prognosis_fit import levelled
from apps.climate_downscaling.scratch import scratch_for
from apps.climate_downscaling.train import Say, data_facts, judge, values_of
from core.cards import write_card
from core.errors import AleatorError
from core.report import command_line
from core.settings import merge

FREE = ("split", "memory")
"""Settings that may differ from the model's; the rest is what its network was trained with."""


def relevel(
    folder: Path,
    source: str,
    output: Path,
    changes: Mapping[str, Any],
    *,
    predictors: Sequence[str] = (),
    time_range: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = print,
) -> PrognosisModel:
    """Fit the level of a model again, to data that have more years, and save it.

    Args:
        folder: of the model, trained with predictors in files of their own.
        source: observations, or what `prepare` wrote.
        output: folder for the new model.
        changes: nested settings, of those that are `FREE`.
        predictors: files; those that the model was trained on if none.
        time_range: "A:B" of the data; all if None.
        device: where the test part is drawn.
        overwrite: replace a model that is there.
        say: for the log.

    Raises:
        AleatorError: a model of another kind, other settings, data that do not fit the model, or
            a model is there already.
    """
    if (output / "model.json").exists() and not overwrite:
        raise AleatorError(f"{output} holds a model; choose another folder or --overwrite")
    model = DownscalingModel.load(folder)
    if not isinstance(model, PrognosisModel):
        raise AleatorError(
            f"{folder}: learnt from block means, which do not drift; --relevel is for models of "
            "--predictors"
        )
    config = _config(model, source, changes, predictors, time_range)
    prepared = open_prepared(source, config)
    say(prepared.fine.describe())
    say(f"split: {prepared.describe_split()}")
    with tempfile.TemporaryDirectory() as place:
        fields = values_of(prepared, config, prepared.train)
        scratch = scratch_for(Path(place), fields, config.memory)
        fresh = levelled(model, prepared, prepared.train, scratch)
    fresh = dataclasses.replace(fresh, config=config)
    for line in fresh.describe():
        say(line)
    scores = judge(fresh, prepared, device, say)
    card = {
        **(model.card or {}),
        **data_facts(fresh, prepared),
        "scores": scores,
        "network": f"of {model.fingerprint}: {(model.card or {}).get('command', 'unknown')}",
        "command": command_line(),
    }
    saved = fresh.save(output, card, prepared.fingerprint())
    write_card(output / "card.md", card)
    say(f"{output}: model {saved.fingerprint}, with the network of {model.fingerprint}")
    return dataclasses.replace(fresh, fingerprint=saved.fingerprint, card=card)


def _config(
    model: PrognosisModel,
    source: str,
    changes: Mapping[str, Any],
    predictors: Sequence[str],
    time_range: str | None,
) -> Config:
    """The model's settings, on other data.

    Raises:
        AleatorError: settings that the network depends on.
    """
    if fixed := sorted(set(changes) - set(FREE)):
        raise AleatorError(
            f"--set {fixed[0]}: with --relevel all but {' and '.join(FREE)} is the model's"
        )
    base = merge({**model.config.to_dict(), "time_range": None}, stored_settings(source))
    base["predictors"]["strengths"] = model.config.predictors.strengths
    return read_config(None, changes, predictors=predictors, time_range=time_range, base=base)
