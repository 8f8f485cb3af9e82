"""A small file of events: a toy detector with efficiency, exact zeros, integers and fakes."""

import numpy as np
import pytest

ak = pytest.importorskip("awkward")
uproot = pytest.importorskip("uproot")


def toy_events(count, seed=0):
    """Branches of `count` events as awkward arrays, NanoAOD's names."""
    rng = np.random.default_rng(seed)
    n = rng.poisson(3, count)
    total = int(n.sum())
    pt = np.sort(15 + rng.exponential(40, total))[::-1]
    gen = {
        "pt": pt, "eta": rng.uniform(-3, 3, total), "phi": rng.uniform(-np.pi, np.pi, total),
        "mass": 0.1 * pt * rng.uniform(0.5, 1.5, total),
        "hadronFlavour": rng.choice([0, 4, 5], total), "partonFlavour": rng.choice([1, 21], total),
    }  # fmt: skip
    event = np.repeat(np.arange(count), n)
    place = np.arange(total) - np.repeat(np.cumsum(n) - n, n)
    found = rng.random(total) < 0.9
    reco, owner = _reconstructed(gen, found, rng), event[found]
    reco["genJetIdx"] = place[found]
    fakes = rng.poisson(0.5, count)
    fake_owner = np.repeat(np.arange(count), fakes)
    fake = _fakes(len(fake_owner), rng)
    merged = {name: np.concatenate([reco[name], fake[name]]) for name in reco}
    owner = np.concatenate([owner, fake_owner])
    order = np.lexsort((-merged["pt"], owner))
    return {
        "event": np.arange(count),
        "genWeight": rng.random(count).astype(np.float32),
        "GenJet": ak.zip({k: ak.unflatten(_typed(k, v), n) for k, v in gen.items()}),
        "Jet": ak.zip(
            {
                k: ak.unflatten(_typed(k, v[order]), np.bincount(owner, minlength=count))
                for k, v in merged.items()
            }
        ),
    }


def _reconstructed(gen, found, rng):
    size = int(found.sum())
    g = {name: value[found] for name, value in gen.items()}
    shares = rng.dirichlet([2, 1, 1], size)
    shares[rng.random(size) < 0.2, 2] = 0.0
    shares /= shares.sum(1, keepdims=True)
    return {
        "pt": g["pt"] * np.exp(0.1 * rng.standard_normal(size)),
        "eta": g["eta"] + 0.02 * rng.standard_normal(size),
        "phi": (g["phi"] + 0.02 * rng.standard_normal(size) + np.pi) % (2 * np.pi) - np.pi,
        "mass": g["mass"] * np.exp(0.2 * rng.standard_normal(size)),
        "nConstituents": 3 + rng.poisson(g["pt"] / 5),
        "chHEF": shares[:, 0], "neEmEF": shares[:, 1], "neHEF": shares[:, 2],
    }  # fmt: skip


def _fakes(size, rng):
    shares = rng.dirichlet([1, 1, 1], size)
    return {
        "pt": 8 + rng.exponential(3, size), "eta": rng.uniform(-4, 4, size),
        "phi": rng.uniform(-np.pi, np.pi, size), "mass": 0.5 + rng.random(size),
        "nConstituents": 3 + rng.poisson(2, size), "chHEF": shares[:, 0],
        "neEmEF": shares[:, 1], "neHEF": shares[:, 2], "genJetIdx": np.full(size, -1),
    }  # fmt: skip


def _typed(name, values):
    whole = name in ("nConstituents", "genJetIdx", "hadronFlavour", "partonFlavour")
    return values.astype(np.int32 if whole else np.float32)


def write_root(path, events):
    """Write branches as a tree `Events`."""
    with uproot.recreate(path) as file:
        kinds = {
            name: ak.type(value).content if isinstance(value, ak.Array) else value.dtype
            for name, value in events.items()
        }
        file.mktree("Events", kinds)
        file["Events"].extend(events)


@pytest.fixture(scope="session")
def events_root(tmp_path_factory):
    """1 500 toy events."""
    path = tmp_path_factory.mktemp("jets") / "events.root"
    write_root(path, toy_events(1500))
    return path


@pytest.fixture(scope="session")
def jets_model(events_root, tmp_path_factory):
    """A model trained on them, briefly."""
    from apps.hep_simulation.jets.train import Request, run

    folder = tmp_path_factory.mktemp("model")
    settings = {"width": 32, "mixtures": 4, "fit": {"steps": 300, "batch_size": 128, "ema": 0.98}}
    request = Request(events_root, folder / "m", settings, device="cpu")
    run(request, say=lambda line: None)
    return folder / "m"
