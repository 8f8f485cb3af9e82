"""New cells: exact totals, the law of each condition, translation there and back, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.single_cell import Config, Denoiser
from apps.single_cell.covariates import Design
from apps.single_cell.describe import describe
from apps.single_cell.generate import Generator
from apps.single_cell.generating import Translation, pair
from apps.single_cell.likelihood import CellLaw
from apps.single_cell.prior import PriorConfig
from apps.single_cell.scatter import Scatter, draw_counts
from core.errors import AleatorError
from core.random import keyed_generator

SHORT = PriorConfig(width=64, steps=500)


@pytest.fixture(scope="module")
def made(known):
    adata, _ = known(360, 40, batches=2)
    config = Config(4, 32, "nb", strength=10.0, steps=150, shrinkage=1.0)
    denoiser = Denoiser.fit(adata, batch_key="batch", config=config)
    return Generator.fit(denoiser, adata, like=["kind"], config=SHORT), adata


def streams(n, seed=0):
    return [keyed_generator(seed, i) for i in range(n)]


@pytest.mark.exact
@pytest.mark.parametrize("theta", [None, 2.0])
def test_counts_have_the_library_as_total_and_the_shares_as_mean(theta):
    n = 4000
    share = torch.tensor([0.5, 0.3, 0.15, 0.05])
    log_theta = None if theta is None else torch.full((1, 4), theta).log()
    law = CellLaw(share.log().expand(n, 4), torch.full((n,), 60.0), log_theta)
    x = draw_counts(law, streams(n))
    assert (x.sum(1) == 60).all()
    if theta is None:
        assert x.mean(0) == pytest.approx(60 * share, rel=0.03)
        variance = 60 * share * (1 - share)  # of a multinomial
        assert x.var(0) == pytest.approx(variance, rel=0.1)
    else:
        # gamma rates of shape θ over their sum: more variance than the multinomial has
        rates = np.random.default_rng(0).gamma(theta, 1 / theta, (200_000, 4)) * share.numpy()
        p = rates / rates.sum(1, keepdims=True)
        total = 60 * (p * (1 - p)).mean(0) + 3600 * p.var(0)
        assert x.mean(0) == pytest.approx(60 * p.mean(0), rel=0.03)
        assert x.var(0) == pytest.approx(total, rel=0.1)


def test_inserted_zeros_are_there_and_totals_stay():
    law = CellLaw(torch.zeros(500, 4), torch.full((500,), 100.0), zero_logits=torch.zeros(1, 4))
    x = draw_counts(law, streams(500))
    assert (x.sum(1) == 100).all()
    assert (x == 0).float().mean() == pytest.approx(0.5, abs=0.05)


def test_new_cells_are_like_those_of_their_type(made):
    generator, adata = made
    new = generator.generate(600)
    assert (new.X.data % 1 == 0).all()
    real, fake = adata.X.toarray(), new.X.toarray()
    for kind in "012":
        a, b = real[adata.obs["kind"] == kind], fake[new.obs["kind"] == kind]
        assert np.corrcoef(a.mean(0), b.mean(0))[0, 1] > 0.98
        assert np.log(b.sum(1)).mean() == pytest.approx(np.log(a.sum(1)).mean(), abs=0.1)
        assert np.log(b.sum(1)).std() == pytest.approx(np.log(a.sum(1)).std(), rel=0.25)
        assert (b == 0).mean() == pytest.approx((a == 0).mean(), abs=0.03)
    first = (adata.obs["batch"] == "b1").to_numpy(), (new.obs["batch"] == "b1").to_numpy()
    assert fake[first[1], :5].sum() / fake[first[1]].sum() == pytest.approx(
        real[first[0], :5].sum() / real[first[0]].sum(), rel=0.2
    )


def test_what_is_asked_for_is_what_comes_and_does_not_depend_on_how_many(made):
    generator, _ = made
    few = generator.generate(20, {"kind": "1", "batch": "b0"}, seed=3)
    many = generator.generate(300, {"kind": "1", "batch": "b0"}, seed=3)
    assert set(few.obs["kind"]) == {"1"}
    assert set(few.obs["batch"]) == {"b0"}
    assert abs(few.X - many.X[:20]).max() == 0
    assert abs(generator.generate(20, {"kind": "1"}, seed=4).X - few.X).max() > 0


def test_diffusion_by_one_word(made):
    generator, adata = made
    config = PriorConfig("diffusion", width=64, steps=500)
    other = Generator.fit(generator.denoiser, adata, like=["kind"], config=config)
    new = other.generate(300, {"kind": "2"})
    real = adata.X.toarray()[adata.obs["kind"] == "2"].mean(0)
    assert np.corrcoef(real, new.X.toarray().mean(0))[0, 1] > 0.98


def test_translated_cells_are_of_the_other_type_and_come_back(made):
    generator, adata = made
    moved = generator.translate(adata, "kind", "0", "1")
    chosen = adata[adata.obs["kind"] == "0"]
    assert list(moved.obs_names) == list(chosen.obs_names)
    assert (moved.obs["batch"] == chosen.obs["batch"]).all()
    real = {k: adata.X.toarray()[adata.obs["kind"] == k].mean(0) for k in "01"}
    mean = moved.X.toarray().mean(0)
    assert np.corrcoef(mean, real["1"])[0, 1] > 0.98 > np.corrcoef(mean, real["0"])[0, 1]


@pytest.mark.exact
def test_translation_is_invertible(made):
    prior = made[0].prior
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    library = torch.full((30,), 150.0)
    a, b = (
        Design(np.tile([0, k], (30, 1)), np.zeros((30, 0), np.float32), (2, 3)) for k in (0, 1)
    )
    there = prior.translate(z, library, a, b)
    assert (there[0] - z).abs().max() > 0.1
    back = prior.translate(*there, b, a)
    assert back[0] == pytest.approx(z, abs=0.02)
    assert back[1] == pytest.approx(library, rel=0.01)


def test_saved_and_loaded(made, tmp_path):
    generator, adata = made
    denoiser = generator.denoiser.save(tmp_path / "m")
    with pytest.raises(AleatorError, match="no prior"):
        Generator.load(tmp_path / "m")
    replace(generator, denoiser=denoiser).save(tmp_path / "m")
    again = Generator.load(tmp_path / "m").generate(50)
    assert abs(again.X - generator.generate(50).X).max() == 0
    assert "a critic chooses" in describe(str(tmp_path / "m"))
    Generator(denoiser, generator.prior).save(tmp_path / "m")  # as versions before `scatter` did
    plain = Generator.load(tmp_path / "m")
    assert plain.scatter is None
    assert plain.critic is None
    assert abs(plain.generate(50).X - again.X).max() > 0
    Denoiser.fit(adata, batch_key="batch", config=Config(3, 8, "nb", strength=1.0, steps=2)).save(
        tmp_path / "m"
    )
    with pytest.raises(AleatorError, match="another model"):
        Generator.load(tmp_path / "m")


def test_one_candidate_is_what_is_drawn_without_a_critic(made):
    generator, _ = made
    assert generator.critic is not None
    one, ten = generator.generate(60, candidates=1), generator.generate(60)
    plain = replace(generator, critic=None).generate(60)
    assert abs(one.X - plain.X).max() == 0
    assert (one.obsm["X_aleator"] == plain.obsm["X_aleator"]).all()
    assert (one.uns["aleator"]["candidates"], ten.uns["aleator"]["candidates"]) == (1, 10)
    same = abs(one.X - ten.X).sum(1) == 0
    assert 0 < same.sum() < 30  # a tenth of them, about
    with pytest.raises(AleatorError, match="0 candidates"):
        generator.generate(5, candidates=0)


def test_latents_are_those_of_the_candidate_that_was_kept(made):
    from apps.single_cell.generate import _other

    generator, _ = made
    kept = generator.generate(300, {"kind": "1", "batch": "b0"}, candidates=3)
    tried = [
        generator.generate(300, {"kind": "1", "batch": "b0"}, seed=_other(0, k), candidates=1)
        for k in range(3)
    ]
    same = [(x.obsm["X_aleator"] == kept.obsm["X_aleator"]).all(1) for x in tried]
    assert (np.sum(same, 0) == 1).all()
    assert min(np.sum(same, 1)) > 50  # each is chosen about as often
    for x, rows in zip(tried, same, strict=True):
        assert abs(x.X[rows] - kept.X[rows]).max() == 0


def test_few_cells_teach_no_critic(made):
    generator, adata = made
    few = Generator.fit(generator.denoiser, adata[:150].copy(), like=["kind"], config=SHORT)
    assert few.critic is None
    assert few.generate(10).uns["aleator"]["candidates"] == 1


def test_counts_come_with_the_scatter_that_is_given(made):
    generator, _ = made
    assert generator.scatter is not None
    dispersion = torch.full_like(generator.scatter.log_dispersion, 8.0)
    drawn = {
        chance: Generator(generator.denoiser, generator.prior, Scatter(dispersion, chance, 50.0))
        .generate(200, seed=2)
        .X.toarray()
        for chance in (0.0, 0.01)
    }
    assert (drawn[0.0].sum(1) == drawn[0.01].sum(1)).all()
    most = {chance: (x / x.sum(1, keepdims=True)).max(0).mean() for chance, x in drawn.items()}
    assert most[0.01] > 1.5 * most[0.0]


def test_each_batch_has_the_scatter_of_its_own(made):
    generator, adata = made
    law = torch.tensor([-2.0, 8.0])[:, None].expand(2, adata.n_vars)
    made_of = Generator(generator.denoiser, generator.prior, Scatter(law, 0.0, 0.0))
    new = made_of.generate(300, seed=2)
    share = new.X.toarray() / new.X.sum(1)
    most = {b: share[(new.obs["batch"] == b).to_numpy()].max(1).mean() for b in ("b0", "b1")}
    assert most["b0"] > 1.5 * most["b1"]


def test_info_tells_what_a_model_generates_by(made, tmp_path):
    generator, _ = made
    denoiser = generator.denoiser.save(tmp_path / "m")
    scatter = Scatter(generator.scatter.log_dispersion, 0.0015, 20.0)
    Generator(denoiser, generator.prior, scatter).save(tmp_path / "m")
    told = describe(str(tmp_path / "m"))
    assert "generates cells (flow_matching) by batch, kind" in told
    assert "1.5 molecules in 1000 are counted about 20 times" in told


def test_cells_without_a_label_are_left_out(made):
    generator, adata = made
    some = adata.copy()
    some.obs.loc[some.obs_names[:60], "kind"] = None
    said = []
    config = PriorConfig(width=8, steps=5)
    fitted = Generator.fit(generator.denoiser, some, like=["kind"], config=config, say=said.append)
    assert "60 cells without kind" in said[0]
    assert len(fitted.prior.rows) == 300


def test_what_cannot_be_generated_is_refused(made):
    generator, adata = made
    with pytest.raises(AleatorError, match="not generated by donor; columns known: batch, kind"):
        generator.generate(5, {"donor": "x"})
    with pytest.raises(AleatorError, match="kind=9 was not seen"):
        generator.generate(5, {"kind": "9"})
    with pytest.raises(AleatorError, match="at least one"):
        generator.generate(0)
    with pytest.raises(AleatorError, match="no translation"):
        generator.translate(adata, "kind", "1", "1")
    with pytest.raises(AleatorError, match="no cell has kind=1"):
        generator.translate(adata[adata.obs["kind"] == "0"].copy(), "kind", "1", "2")
    with pytest.raises(AleatorError, match="no column"):
        Generator.fit(generator.denoiser, adata, like=["plate"])
    with pytest.raises(AleatorError, match="too few"):
        Generator.fit(generator.denoiser, adata[:30].copy(), like=["kind"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "gan"}, "flow_matching, diffusion"),
        ({"steps": 0}, "steps"),
        ({"spread": 2.0}, "spread"),
    ],
)
def test_bad_prior_options(options, said):
    with pytest.raises(AleatorError, match=said):
        PriorConfig(**options)


def test_pairs_and_translations_are_parsed():
    assert pair("cell_type=CD4=T") == ("cell_type", "CD4=T")
    assert Translation.parse("a=1", "a=2") == Translation("a", "1", "2")
    assert Translation.parse(None, None) is None
    for wrong in (("a=1", None), ("a=1", "b=2"), ("a", "a=2")):
        with pytest.raises(AleatorError):
            Translation.parse(*wrong)
