"""scvi-tools in its own interpreter: counts go in and rates, or new cells, come out through files.

It needs other versions than ours does. Its defaults are kept: `SCVI(gene_likelihood="nb")`, 100
epochs for denoising and 200 for generation, rates from ten draws. Wall-clock and peak memory are
of that process alone, which uses as many threads as `OMP_NUM_THREADS` says, as ours does.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

SCRIPT = """
import os, resource, sys, time, warnings
import numpy as np, scipy.sparse as sp
warnings.simplefilter("ignore")
import anndata as ad, scvi, torch
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
given = np.load(sys.argv[1])
counts = sp.csr_matrix(
    (given["data"], given["indices"], given["indptr"]), shape=tuple(given["shape"])
)
scvi.settings.seed = int(given["seed"])
started = time.perf_counter()
scvi.model.SCVI.setup_anndata(adata := ad.AnnData(counts))
model = scvi.model.SCVI(adata, gene_likelihood="nb")
model.train(max_epochs=int(given["epochs"]), enable_progress_bar=False, accelerator="cpu")
trained = time.perf_counter() - started
if "library" in given:
    n = torch.from_numpy(given["library"]).float()[:, None]
    batch = torch.zeros((len(n), 1))
    found = []
    with torch.no_grad():
        z = torch.randn((len(n), model.module.n_latent))
        for at in range(0, len(n), 128):
            rows = slice(at, at + 128)
            law = model.module.generative(z[rows], n[rows].log(), batch[rows])["px"]
            found.append(law.sample().numpy())
    out = np.concatenate(found)
else:
    out = np.asarray(
        model.get_normalized_expression(library_size=1, n_samples=10, return_mean=True),
        np.float32,
    )
    out = out * np.asarray(counts.sum(1), np.float32)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
np.savez(sys.argv[2], out=out, trained=trained, seconds=seconds, peak=peak,
         cpu=time.process_time(), version=scvi.__version__, torch=torch.__version__)
"""


@dataclass(frozen=True)
class Ran:
    """One run of scvi-tools.

    Attributes:
        out: rates (N, G) at the depth of each cell, or counts of new cells.
        trained: seconds of training.
        seconds: of training and of the output.
        peak: MB of the process.
        cpu: seconds of the whole process, imports included.
        version: of scvi-tools and of torch.
    """

    out: np.ndarray
    trained: float
    seconds: float
    peak: float
    cpu: float
    version: str


def run_scvi(
    python: Path,
    counts: sp.csr_matrix,
    seed: int,
    *,
    epochs: int = 100,
    library: np.ndarray | None = None,
    keep: Path | None = None,
) -> Ran:
    """Train on counts; rates of these cells, or new ones with given libraries.

    Args:
        python: interpreter that has scvi-tools.
        counts: (N, G).
        seed: of its training.
        epochs: of training.
        library: (M,) molecules of new cells, from latents of the standard normal; None for rates.
        keep: file with what a run gave; one that is there is not run again.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.npz", keep or Path(folder) / "out.npz"
        if not _whole(found):
            found.parent.mkdir(parents=True, exist_ok=True)
            more = {} if library is None else {"library": library}
            np.savez(
                given, data=counts.data, indices=counts.indices, indptr=counts.indptr,
                shape=counts.shape, seed=seed, epochs=epochs, **more,
            )  # fmt: skip
            part = found.with_suffix(".part.npz")
            subprocess.run(
                [python, "-c", SCRIPT, given, part], check=True, stdout=subprocess.DEVNULL
            )
            part.replace(found)
        with np.load(found) as out:
            version = f"scvi-tools {out['version']}, torch {out['torch']}"
            numbers = (float(out[name]) for name in ("trained", "seconds", "peak", "cpu"))
            return Ran(out["out"], *numbers, version)


def _whole(found: Path) -> bool:
    """Whether a run is there with all that is asked of it."""
    if not found.exists():
        return False
    with np.load(found) as out:
        return {"out", "trained", "seconds", "peak", "cpu"} <= set(out.files)
