"""Thinned training: the encoder sees some molecules, the decoder is judged on the others."""

import numpy as np
import pytest
import torch
from scipy import stats

from apps.single_cell.config import DROPOUT, Config
from apps.single_cell.generate import COMPONENTS, STRENGTH, generating
from apps.single_cell.model import SEEN, CellVAE
from core.errors import AleatorError
from core.random import binomial, keyed_generator

GENES, CELLS = 30, 200


def model(thinned):
    profile = torch.linspace(-1, 1, GENES).log_softmax(0)
    torch.manual_seed(0)
    return CellVAE(profile, CELLS, Config(3, 16, "poisson", strength=10.0, thinned=thinned))


def counts():
    rate = 120 * torch.linspace(-1, 1, GENES).softmax(0)
    return torch.poisson(rate.expand(CELLS, -1), generator=keyed_generator(1))


def test_the_decoder_is_judged_on_molecules_that_the_encoder_did_not_see(monkeypatch):
    found, x = model(True), counts()
    seen, judged = [], []
    encode, decode = found.posterior_law, found.decode

    def spied_law(z, context):
        law = decode(z, context)
        plain = law.log_prob

        def log_prob(y):
            judged.append((y, context["library"]))
            return plain(y)

        object.__setattr__(law, "log_prob", log_prob)
        return law

    def spied_encode(y, context):
        seen.append((y, context["library"]))
        return encode(y, context)

    monkeypatch.setattr(found, "posterior_law", spied_encode)
    monkeypatch.setattr(found, "decode", spied_law)
    loss = found.loss(x, {"library": x.sum(1)}, generator=keyed_generator(2))
    (part, before), (rest, after) = seen[0], judged[0]
    torch.testing.assert_close(part + rest, x)
    torch.testing.assert_close(before + after, x.sum(1))
    share = (before / x.sum(1)).numpy()
    assert SEEN[0] <= share.min() < share.max() <= SEEN[1]
    assert abs(share.mean() - sum(SEEN) / 2) < 0.03
    expected = (part.sum(1) - before).numpy() / np.sqrt(part.sum(1).numpy())
    assert abs(expected.mean()) < 0.15
    assert loss.value.shape == (CELLS,)


def test_its_reconstruction_is_of_all_molecules_on_average():
    """E ln p(x'') / (1 - s) of a decoder that tells cells not apart: that of x, per molecule."""
    found, x = model(True), counts()
    with torch.no_grad():
        found.decoder.weight.zero_()
        library = {"library": x.sum(1)}
        thinned = torch.stack(
            [
                found.loss(x, library, generator=keyed_generator(3, k)).terms["reconstruction"]
                for k in range(40)
            ]
        )
        law = found.decode(torch.zeros(CELLS, 3), library)
        share = law.rate / law.rate.sum(1, keepdim=True)
        n = x.sum(1)
    # of Poisson counts of mean (1 - s) m each: -E ln p = n-free entropy, by scipy
    m, s = (n.mean() * share[0]).double().numpy(), np.linspace(*SEEN, 41)
    entropy = [stats.poisson.entropy((1 - one) * m).sum() / (1 - one) for one in s]
    assert float(thinned.mean()) == pytest.approx(np.mean(entropy), rel=0.08)


def test_generating_models_are_thinned_and_others_are_not():
    made = generating(None, 100)
    assert (made.thinned, made.components, made.dropout) == (True, COMPONENTS, 0.0)
    assert (made.strength, made.shrinkage) == (STRENGTH, 1.0)
    asked = Config(thinned=False, components=0, dropout=0.2, strength=5.0)
    kept = generating(asked, 100)
    assert (kept.thinned, kept.components, kept.dropout, kept.strength) == (False, 0, 0.2, 5.0)
    assert Config().thinned is None
    plain = model(None)
    assert not plain.thinned
    assert plain.prior is None
    assert plain.decoder.dropout.p == DROPOUT
    mixed = CellVAE(torch.zeros(GENES), CELLS, Config(3, 16, "nb", strength=1.0, components=4))
    assert mixed.prior.mean.shape == (4, 3)
    with pytest.raises(AleatorError, match="components=-1"):
        Config(components=-1)


def test_evaluation_sees_all_molecules():
    thinned, plain, x = model(True).eval(), model(False).eval(), counts()
    library = {"library": x.sum(1)}
    values = [m.loss(x, library, generator=keyed_generator(4)).value for m in (thinned, plain)]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


def test_what_was_learned_from_the_rest_is_not_noise():
    """Cells that are all alike: a thinned encoder has nothing to tell, another has their noise."""
    cells, genes = 60, 1500
    x = torch.poisson(torch.ones(cells, genes), generator=keyed_generator(1))
    told = []
    for thinned in (True, False):
        torch.manual_seed(0)
        config = Config(3, 32, "poisson", strength=0.1, dropout=0.0, thinned=thinned)
        found = CellVAE(torch.zeros(genes).log_softmax(0), cells, config)
        optimiser = torch.optim.Adam(found.parameters(), 1e-2)
        for step in range(200):
            optimiser.zero_grad()
            stream = keyed_generator(5, step)
            found.loss(x, {"library": x.sum(1)}, generator=stream).value.mean().backward()
            optimiser.step()
        found.eval()
        with torch.no_grad():
            law = found.decode(found.encode(x, {"library": x.sum(1)}).mean, {"library": x.sum(1)})
        told.append(float((law.rate / law.rate.mean(0)).log().std(0).mean()))
    assert told[0] < 0.75 * told[1]


def test_binomial_draws_are_keyed_by_row():
    count, share = torch.full((3, 50), 40.0), torch.tensor([[0.1], [0.5], [0.9]])
    streams = [keyed_generator(6, i) for i in range(3)]
    whole = binomial(count, share, streams)
    last = binomial(count[2:], share[2:], [keyed_generator(6, 2)])
    torch.testing.assert_close(whole[2:], last, rtol=0, atol=0)
    mean = binomial(count.repeat(1, 100), share, keyed_generator(7)).mean(1)
    np.testing.assert_allclose(mean.numpy(), [4, 20, 36], atol=0.2)
