"""Figures show what they are given; scanpy-style doors do what the commands do."""

import anndata as ad
import numpy as np
import pytest

from apps.single_cell import Config, Denoiser, Output, pl, plots, pp, tl
from core.errors import AleatorError


@pytest.fixture(scope="module")
def denoised(known):
    adata, _ = known(240, 40, batches=2)
    config = Config(3, 16, "nb", strength=10.0, steps=80)
    denoiser = Denoiser.fit(adata, batch_key="batch", config=config)
    return denoiser, denoiser.denoise(adata)


@pytest.fixture
def quick_layout(monkeypatch):
    """The first two coordinates instead of a layout that takes seconds."""
    monkeypatch.setattr(plots, "umap", lambda points, seed=0: np.asarray(points)[:, :2])


def test_embeddings_show_every_cell_in_the_colour_of_its_type(denoised, quick_layout):
    _, adata = denoised
    before, after = pl.embeddings(adata, "kind").axes[:2]
    for axes in (before, after):
        assert sum(len(dots.get_offsets()) for dots in axes.collections) == adata.n_obs
    sizes = [len(dots.get_offsets()) for dots in after.collections]
    assert sizes == adata.obs["kind"].value_counts().sort_index().tolist()
    shown = np.sort(np.concatenate([dots.get_offsets().data[:, 0] for dots in after.collections]))
    assert shown == pytest.approx(np.sort(adata.obsm["X_aleator"][:, 0]), abs=1e-5)


def test_markers_are_as_large_as_the_share_of_cells(denoised):
    _, adata = denoised
    left = pl.markers(adata, ["g1", "g7"], "kind").axes[0]
    sizes = left.collections[0].get_sizes()
    x = adata.X.toarray()[:, [1, 7]]
    share = [(x[(adata.obs["kind"] == k).to_numpy()] > 0).mean(0) for k in "012"]
    assert sizes == pytest.approx(4 + 120 * np.concatenate(share), rel=1e-6)


def test_calibration_and_losses_are_those_of_the_verdict(denoised):
    denoiser, _ = denoised
    verdict = denoiser.verdict
    line = pl.calibration(verdict.curve).axes[0].lines[1]
    assert dict(zip(*line.get_data(), strict=True))[0.9] == verdict.coverage
    assert (np.diff(line.get_ydata()) > 0).all()
    axes = pl.cross_validation(verdict.losses, {}).axes[0]
    shown = axes.collections[0].get_offsets().data[:, 0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert dict(zip(names, shown, strict=True)) == verdict.losses


def test_draw_writes_all_and_refuses_what_is_not_there(denoised, quick_layout, tmp_path):
    _, adata = denoised
    written = plots.draw(adata, tmp_path, "kind", ["g1"])
    assert {path.name for path in written} == {
        "markers.png",
        "calibration.png",
        "cross_validation.png",
        "embeddings.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    with pytest.raises(AleatorError, match="no column type"):
        pl.embeddings(adata, "type")
    with pytest.raises(AleatorError, match="no such gene: HBB"):
        pl.markers(adata, ["HBB"], "kind")
    with pytest.raises(AleatorError, match="denoise, score or integrate"):
        pl.embeddings(ad.AnnData(adata.X))
    with pytest.raises(AleatorError, match="--colour"):
        plots.draw(adata, tmp_path, genes=["g1"])
    with pytest.raises(AleatorError, match="older version"):
        pl.calibration(())


def test_verdict_keeps_its_curve(denoised, tmp_path):
    denoiser, _ = denoised
    denoiser.save(tmp_path / "m")
    assert Denoiser.load(tmp_path / "m").verdict.curve == denoiser.verdict.curve


def test_tools_write_in_place_what_the_denoiser_gives(denoised, known):
    denoiser, whole = denoised
    adata, _ = known(240, 40, batches=2)
    tl.score(adata, denoiser)
    assert not adata.layers
    assert (adata.obs["aleator_ood"] == whole.obs["aleator_ood"]).all()
    tl.integrate(adata, model=denoiser, to_batch="b0")
    direct = denoiser.denoise(adata, output=Output(1e4, batch="b0")).layers["denoised"]
    assert (adata.layers["integrated"] == direct).all()
    tl.rank_genes_groups(adata, "kind", model=denoiser, delta=0.5)
    assert adata.uns["rank_genes_groups"]["params"]["delta"] == 0.5
    new = tl.generate(adata, 5, {"kind": "1"}, model=denoiser)
    assert new.shape == (5, 40)
    with pytest.raises(AleatorError, match="batch_key"):
        tl.integrate(adata)


def test_checks_and_filters_before(known):
    adata, _ = known(100, 30)
    found = pp.check(adata)
    assert found["cells"] == 100
    assert found["largest"] == adata.X.max()
    pp.highly_variable(adata, 7)
    assert adata.var["highly_variable"].sum() == 7
    total = np.asarray(adata.X.sum(1)).ravel()
    least = int(np.median(total))
    kept = pp.filter_cells(adata, min_counts=least)
    assert kept.n_obs == (total >= least).sum()
    with pytest.raises(AleatorError, match="loosen"):
        pp.filter_cells(adata, min_counts=10**9)
