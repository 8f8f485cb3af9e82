"""sbi's neural posterior estimation at an equal budget of simulations, in its own interpreter.

sbi needs another torch than ours, so that it runs as a process of its own: arrays go in and out
through a file. Its defaults are kept: NPE with a masked autoregressive flow, means and deviations
of a set's observables as its data.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.hep_simulation.inference.data import EventSets
from apps.hep_simulation.inference.evaluation import Judged
from core.evaluation import expected_coverage, sbc, tarp
from core.random import keyed_generator

DRAWS = 300
SCRIPT = """
import sys, numpy as np, torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
given = np.load(sys.argv[1])
torch.manual_seed(int(given["seed"]))
torch.set_num_threads(1)
u, s, test, truth = (torch.as_tensor(given[k]).float() for k in ("u", "s", "test", "truth"))
dims = u.shape[1]
npe = NPE(prior=BoxUniform(torch.zeros(dims), torch.ones(dims)))
npe.append_simulations(u, s).train(show_train_summary=False)
posterior = npe.build_posterior()
draws, at_draws, at_truth = [], [], []
for x, t in zip(test, truth):
    d = posterior.sample((int(given["draws"]),), x=x, show_progress_bars=False)
    draws.append(d.numpy())
    found = posterior.log_prob(
        torch.cat([d, t[None]]), x=x, leakage_correction_params={"num_rejection_samples": 2000}
    ).numpy()
    at_draws.append(found[:-1])
    at_truth.append(found[-1])
np.savez(sys.argv[2], draws=np.stack(draws, 1), at_draws=np.stack(at_draws, 1), at_truth=at_truth)
"""


def npe(python: Path, train: EventSets, test: EventSets, seed: int) -> dict[str, Any]:
    """Scores of sbi's posterior.

    Args:
        python: interpreter that has sbi.
        train: simulations.
        test: others.
        seed: of its training.
    """
    from hep_infer import summaries

    assert train.theta is not None
    assert train.prior is not None
    assert test.theta is not None
    u, truth = (train.prior.to_unit(t) for t in (train.theta, test.theta))
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(
            given, u=u, truth=truth, s=summaries(train.x), test=summaries(test.x), seed=seed,
            draws=DRAWS,
        )  # fmt: skip
        subprocess.run([python, "-c", SCRIPT, given, found], check=True, stdout=subprocess.DEVNULL)
        with np.load(found) as out:
            draws, at_draws, at_truth = (
                torch.as_tensor(out[k]).double() for k in ("draws", "at_draws", "at_truth")
            )
    generator, truths = keyed_generator(seed), torch.as_tensor(truth)
    judged = Judged(
        at_truth, sbc(draws, truths, generator),
        tarp(draws, truths, torch.rand(truths.shape, generator=generator, dtype=torch.float64)),
        expected_coverage(at_draws, at_truth, generator), draws, truths,
    )  # fmt: skip
    return judged.row()
