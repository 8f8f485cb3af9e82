"""Make `five_lines_thinned.h5ad` from sc_mixology; see README.md.

python apps/single_cell/samples/make_sample.py sc_mixology_cells.h5ad
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from apps.single_cell.mcv import thin

GENES, SHARE, SEED = 2000, 0.1, 0


def main(source: str) -> None:
    """Thin the singlets of the five-line plates; keep the rest of their molecules as truth."""
    adata = ad.read_h5ad(source)
    kept = adata.obs["batch"].astype(str).str.contains("5cl").to_numpy()
    kept &= (adata.obs["demuxlet_cls"] == "SNG").to_numpy()
    adata = adata[kept]
    seen, truth = thin(sp.csr_matrix(adata.X), SHARE, SEED)
    most = np.argsort(-np.asarray(truth.sum(0)).ravel(), kind="stable")[:GENES]
    genes = np.sort(most)
    obs = adata.obs[["cell_line", "batch"]].astype(str).astype("category")
    made = ad.AnnData(seen[:, genes], obs=obs, var=pd.DataFrame(index=adata.var_names[genes]))
    made.layers["truth"] = truth[:, genes].astype(np.int16)
    made.uns["source"] = (
        "sc_mixology (Tian et al. 2019, doi:10.1038/s41592-019-0425-8), MIT licence"
    )
    path = Path(__file__).parent / "five_lines_thinned.h5ad"
    made.write_h5ad(path, compression="gzip", compression_opts=9)


if __name__ == "__main__":
    main(sys.argv[1])
