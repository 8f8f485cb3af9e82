"""The denoiser on cells of known rates: better than raw, calibrated, reproducible, refusing."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from apps.single_cell import Config, Denoiser, Output
from apps.single_cell.data import open_cells
from apps.single_cell.layers import expected_log
from core.errors import AleatorError, CheckpointError

QUICK = Config(latent=4, width=32, likelihood="nb", strength=10.0, steps=200)


@pytest.fixture(scope="module")
def fitted(known):
    adata, rates = known()
    return Denoiser.fit(adata, config=QUICK), adata, rates


def test_rates_are_nearer_the_truth_than_counts(fitted):
    denoiser, adata, rates = fitted
    raw = np.square(adata.X.toarray() - rates).mean()
    for estimate, share in (("mean", 0.6), ("balanced", 0.65)):
        found = denoiser.denoise(adata, output=Output(estimate=estimate))
        assert np.square(found.layers["denoised"] - rates).mean() < share * raw


def test_credible_intervals_hold_the_true_rates(fitted):
    denoiser, adata, rates = fitted
    for level in (0.5, 0.9):
        found = denoiser.denoise(adata, output=Output(level=level))
        low, high = found.layers["denoised_lower"], found.layers["denoised_upper"]
        big = rates > 1  # rarer ones are inside or outside by the prior alone
        inside = ((low <= rates) & (rates <= high))[big].mean()
        assert inside == pytest.approx(level, abs=0.06)
        assert (low <= found.layers["denoised"]).all()
        mean = denoiser.denoise(adata, output=Output(level=level, estimate="mean"))
        beyond = np.maximum(high, mean.layers["denoised"])
        assert (found.layers["denoised"] <= beyond).all()


def test_verdict_helps_and_covers(fitted):
    verdict = fitted[0].verdict
    assert verdict.helps
    assert not verdict.hurts
    assert verdict.losses["ours"] < verdict.losses["library mean"]
    assert verdict.coverage == pytest.approx(0.9, abs=0.02)
    assert "denoising helps" in verdict.sentence()


def test_verdict_says_so_where_cells_do_not_differ():
    rng = np.random.default_rng(0)
    profile = rng.dirichlet(np.full(60, 0.5))
    counts = rng.poisson(100 * profile, (200, 60)).astype(np.float32)
    counts[:, 0] += 1
    found = Denoiser.fit(ad.AnnData(sp.csr_matrix(counts)), config=QUICK)
    assert not found.verdict.helps
    assert "denoising helps" not in found.verdict.sentence()
    assert found.warnings(np.zeros(10))


def test_everything_is_kept_and_the_input_untouched(fitted):
    denoiser, adata, _ = fitted
    before = adata.copy()
    found = denoiser.denoise(adata)
    assert abs(adata.X - before.X).max() == 0
    assert not adata.layers
    assert abs(found.X - adata.X).max() == 0
    assert found.obsm["X_aleator"].shape == (240, 4)
    assert {"aleator_elbo", "aleator_ood"} <= set(found.obs)
    assert found.uns["aleator"]["verdict"]["helps"]


def test_the_input_s_own_depth_or_a_common_one(fitted):
    denoiser, adata, _ = fitted
    own = denoiser.denoise(adata).layers["denoised"]
    total = np.asarray(adata.X.sum(1)).ravel()
    assert own.sum(1) == pytest.approx(total, rel=0.15)
    common = denoiser.denoise(adata, output=Output(target_sum=1e4)).layers["denoised"]
    assert common == pytest.approx(own * (1e4 / total)[:, None], rel=1e-4)


def test_same_seed_same_numbers_backed_or_not(fitted, tmp_path):
    _, adata, _ = fitted
    adata.write_h5ad(tmp_path / "in.h5ad")
    config = Config(4, 16, "nb", strength=10.0, steps=30)
    sources = (adata, open_cells(tmp_path / "in.h5ad", backed=True))
    one, two = (
        Denoiser.fit(source, config=config).denoise(adata).layers["denoised"] for source in sources
    )
    assert (one == two).all()


def test_part_of_the_cells_gives_the_same(fitted):
    denoiser, adata, _ = fitted
    whole = denoiser.denoise(adata).layers["denoised"]
    cells = open_cells(adata)
    some = np.zeros(len(cells), bool)
    some[100:150] = True
    part = denoiser.denoise(cells.select(some)).layers["denoised"]
    assert part == pytest.approx(whole[100:150], rel=1e-4, abs=1e-6)


def test_genes_in_another_order_are_aligned_by_name(fitted):
    denoiser, adata, _ = fitted
    order = np.random.default_rng(0).permutation(adata.n_vars)
    found = denoiser.denoise(adata[:, order].copy()).layers["denoised"]
    assert found == pytest.approx(denoiser.denoise(adata).layers["denoised"][:, order], rel=1e-4)


def test_genes_that_the_model_does_not_know_keep_their_counts(fitted):
    denoiser, adata, _ = fitted
    extra = ad.AnnData(
        sp.csr_matrix(np.ones((adata.n_obs, 1), np.float32)),
        obs=adata.obs,
        var={"gene": ["new"]},
    )
    extra.var_names = ["new"]
    both = ad.concat([extra, adata], axis=1, merge="same")
    found = denoiser.denoise(both).layers["denoised"]
    assert (found[:, 0] == 1).all()
    assert found[:, 1:] == pytest.approx(denoiser.denoise(adata).layers["denoised"], rel=1e-4)


def test_missing_genes_are_refused(fitted):
    with pytest.raises(AleatorError, match="are missing"):
        fitted[0].denoise(fitted[1][:, :40].copy())


def test_saved_and_loaded(fitted, tmp_path):
    denoiser, adata, _ = fitted
    saved = denoiser.save(tmp_path / "model")
    loaded = Denoiser.load(tmp_path / "model")
    assert loaded.fingerprint == saved.fingerprint != ""
    assert loaded.verdict == denoiser.verdict
    one, two = (d.denoise(adata).layers["denoised"] for d in (denoiser, loaded))
    assert (one == two).all()
    with pytest.raises(CheckpointError, match="not a model folder"):
        Denoiser.load(tmp_path)


@pytest.mark.parametrize("end", [".h5ad", ".zarr"])
def test_written_by_blocks_is_what_is_returned(fitted, tmp_path, end):
    denoiser, adata, _ = fitted
    adata.write_h5ad(tmp_path / "in.h5ad")
    path = denoiser.write(open_cells(tmp_path / "in.h5ad"), tmp_path / f"out{end}")
    read = ad.read_h5ad(path) if end == ".h5ad" else ad.read_zarr(path)
    direct = denoiser.denoise(adata)
    for name in direct.layers:
        assert read.layers[name] == pytest.approx(direct.layers[name], rel=1e-4, abs=1e-7)
    assert read.obs["aleator_ood"].to_numpy() == pytest.approx(
        direct.obs["aleator_ood"].to_numpy(), rel=1e-3, abs=1e-3
    )
    assert read.uns["aleator"]["verdict"]["sentence"] == denoiser.verdict.sentence()


def test_unlike_cells_have_high_scores_and_like_ones_do_not(fitted, known):
    denoiser, *_ = fitted
    like, _ = known(seed=5)
    assert (denoiser.denoise(like).obs["aleator_ood"] > 1).mean() < 0.08
    x = like.X.toarray()
    mixed = np.random.default_rng(0).permuted(x, axis=1)
    strange = ad.AnnData(sp.csr_matrix(mixed), obs=like.obs, var=like.var)
    assert (denoiser.denoise(strange).obs["aleator_ood"] > 1).mean() > 0.9


def test_batches_are_taken_out(known):
    adata, _ = known(400, batches=2)
    denoiser = Denoiser.fit(adata, batch_key="batch", config=QUICK)
    first = adata.obs["batch"].to_numpy() == "b1"

    def gap(rates):
        share = rates[:, :5].sum(1) / rates.sum(1)
        return abs(np.log(share[first].mean() / share[~first].mean()))

    raw = gap(adata.X.toarray())
    assert gap(denoiser.denoise(adata).layers["denoised"]) > 0.7 * raw
    same = denoiser.denoise(adata, output=Output(batch="b0")).layers["denoised"]
    assert gap(same) < 0.35 * raw
    with pytest.raises(AleatorError, match="none of batch"):
        denoiser.denoise(adata, output=Output(batch="b9"))
    other = adata.copy()
    other.obs["batch"] = "b7"
    with pytest.raises(AleatorError, match="was not seen in training"):
        denoiser.denoise(other)


def test_dispersion_of_each_batch_learns_and_loads(tmp_path, known):
    adata, _ = known(200, 30, batches=2)
    config = Config(4, 32, "nb", "gene-batch", 10.0, steps=60)
    denoiser = Denoiser.fit(adata, batch_key="batch", config=config)
    assert denoiser.model.likelihood.spread.shape == (2, 30)
    denoiser.save(tmp_path / "m")
    assert Denoiser.load(tmp_path / "m").model.likelihood.spread.shape == (2, 30)
    with pytest.raises(AleatorError, match="batch_key"):
        Denoiser.fit(adata, config=config)


@pytest.mark.parametrize("likelihood", ["poisson", "zinb"])
def test_other_likelihoods_beat_the_mean(likelihood, known):
    adata, _ = known()
    config = Config(4, 32, likelihood, strength=10.0, steps=150)
    verdict = Denoiser.fit(adata, config=config).verdict
    assert verdict.losses["ours"] < verdict.losses["library mean"]


def test_search_tries_and_chooses(known):
    adata, _ = known(60, 20)
    said = []
    found = Denoiser.fit(adata, config=Config(width=8, steps=10), say=said.append)
    assert found.config.chosen
    assert len(found.verdict.tried) >= 4
    assert any("tried nb, latent 20, strength 100" in str(line) for line in said)


@pytest.mark.exact
def test_expected_log_against_many_draws():
    rng = np.random.default_rng(0)
    for shape, mean in ((0.5, 1.0), (3.0, 0.2), (40.0, 9.0)):
        drawn = np.log1p(rng.gamma(shape, mean / shape, 400_000)).mean()
        found = expected_log(np.array([mean]), np.array([shape]))[0]
        assert found == pytest.approx(drawn, rel=0.01)


def test_fraction_and_few_cells_are_refused(known):
    adata, _ = known()
    adata.X = adata.X * 0.5
    with pytest.raises(AleatorError, match="not whole"):
        Denoiser.fit(open_cells(adata, allow_noninteger=True), config=QUICK)
    with pytest.raises(AleatorError, match="too few"):
        Denoiser.fit(known(12)[0], config=QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": 1.0}, "level"),
        ({"draws": 0}, "draws"),
        ({"dtype": "int8"}, "dtype"),
        ({"target_sum": -1.0}, "target_sum"),
        ({"samples": -1}, "samples"),
        ({"sparse": 0.0}, "sparse"),
        ({"estimate": "median"}, "known: balanced, mean"),
        ({"sparse": 0.1, "dtype": "float16"}, "no sparse float16"),
    ],
)
def test_bad_output_options(options, said):
    with pytest.raises(AleatorError, match=said):
        Output(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent": 0}, "latent"),
        ({"likelihood": "gauss"}, "nb, poisson, zinb"),
        ({"dispersion": "cell"}, "gene-batch"),
        ({"strength": -1.0}, "strength"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_config(options, said):
    with pytest.raises(AleatorError, match=said):
        Config(**options)


def test_raw_slot_has_no_layers(fitted):
    denoiser, adata, _ = fitted
    held = adata.copy()
    held.raw = adata
    with pytest.raises(AleatorError, match=r"raw\.to_adata"):
        denoiser.denoise(held, "raw")


def test_scanpy_style_door_writes_in_place_what_the_denoiser_returns(fitted):
    from apps.single_cell import tl

    denoiser, adata, _ = fitted
    mine = adata.copy()
    assert tl.denoise(mine, model=denoiser, target_sum=1e4) is None
    copied = tl.denoise(adata, model=denoiser, target_sum=1e4, copy=True)
    assert (mine.layers["denoised"] == copied.layers["denoised"]).all()
    assert mine.layers["denoised"].sum(1) == pytest.approx(1e4, rel=0.15)
    assert not adata.layers
    assert (mine.obs["aleator_ood"] == copied.obs["aleator_ood"]).all()


def test_samples_have_the_moments_of_the_rates_and_are_keyed_by_cell(fitted):
    denoiser, adata, _ = fitted
    found = denoiser.denoise(adata, output=Output(samples=60, draws=40, estimate="mean"))
    drawn = np.stack([found.layers[f"denoised_sample{k}"] for k in range(60)])
    mean = found.layers["denoised"]
    big = mean > 1
    assert drawn.mean(0)[big] == pytest.approx(mean[big], rel=0.5)
    assert (drawn.mean(0)[big] / mean[big]).mean() == pytest.approx(1, abs=0.02)
    inside = (drawn > found.layers["denoised_lower"]) & (drawn < found.layers["denoised_upper"])
    assert inside[:, big].mean() == pytest.approx(0.9, abs=0.03)
    some = np.zeros(adata.n_obs, bool)
    some[100:110] = True
    part = denoiser.denoise(open_cells(adata).select(some), output=Output(samples=60))
    assert part.layers["denoised_sample3"] == pytest.approx(drawn[3, 100:110], rel=1e-3)


@pytest.mark.parametrize("end", [".h5ad", ".zarr"])
def test_sparse_layers_are_the_dense_ones_above_the_threshold(fitted, tmp_path, end):
    denoiser, adata, _ = fitted
    dense = denoiser.denoise(adata).layers["denoised"]
    output = Output(sparse=0.5)
    direct = denoiser.denoise(adata, output=output)
    path = denoiser.write(open_cells(adata), tmp_path / f"out{end}", output)
    read = ad.read_h5ad(path) if end == ".h5ad" else ad.read_zarr(path)
    for found in (direct, read):
        layer = found.layers["denoised"]
        assert sp.issparse(layer)
        assert layer.toarray() == pytest.approx(np.where(dense < 0.5, 0, dense), rel=1e-4)
    assert 0.05 < read.layers["denoised"].nnz / dense.size < 0.95
