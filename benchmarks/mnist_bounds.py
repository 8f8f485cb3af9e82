"""VAEs on binarised MNIST: ours and pythae's, one architecture, one number of epochs, one judge.

pythae trains in an interpreter of its own (it may ask for another torch or pydantic): images go
in and weights come back through files. Its weights are then put into our model, so that the same
code gives both bounds; its own estimate of ln p(x), `get_nll`, stands beside.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mnist_data import Digits
from mnist_networks import LATENT, decoder, encoder
from torch import Tensor, nn

from core import FitConfig, build, fit
from core.errors import AleatorError
from core.random import keyed_generator
from core.vae.vae import VAE

BATCH, RATE, DRAWS = 100, 1e-3, 50
SCRIPT = """
import sys, time, tempfile, numpy as np, torch
sys.path.insert(0, sys.argv[3])
from mnist_networks import LATENT, decoder, encoder
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
torch.set_num_threads(1)
given = np.load(sys.argv[1])
epochs, batch, rate, seed, draws = (given[k].item() for k in
                                    ("epochs", "batch", "rate", "seed", "draws"))
torch.manual_seed(seed)
class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.body = encoder()
    def forward(self, x):
        mean, log_variance = self.body(x.flatten(1)).chunk(2, 1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)
class Decoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.body = decoder()
    def forward(self, z):
        return ModelOutput(reconstruction=self.body(z).sigmoid().reshape(-1, 1, 28, 28))
config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
model = VAE(config, encoder=Encoder(), decoder=Decoder())
x = torch.as_tensor(given["train"])
with tempfile.TemporaryDirectory() as folder:
    options = BaseTrainerConfig(
        output_dir=folder, num_epochs=epochs, per_device_train_batch_size=batch,
        learning_rate=rate, optimizer_cls="Adam", scheduler_cls="CosineAnnealingLR",
        scheduler_params={"T_max": epochs}, seed=seed, no_cuda=True, keep_best_on_train=True)
    trainer = BaseTrainer(
        model=model, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=options)
    since = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - since
model = trainer.model.eval()
with torch.no_grad():  # a batch must be the number of draws: fewer draws would be filled up to it
    own = model.get_nll(torch.as_tensor(given["held"]), n_samples=draws, batch_size=draws)
weights = {"encoder." + k: v for k, v in model.encoder.body.state_dict().items()}
weights |= {"decoder." + k: v for k, v in model.decoder.body.state_dict().items()}
np.savez(sys.argv[2], own=own, seconds=seconds, **{k: v.numpy() for k, v in weights.items()})
"""


class _Plain(nn.Module):
    """A network of (x, level, context), from one of x alone."""

    def __init__(self, body: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body, self.shape = body, shape

    def forward(self, x: Tensor, level: Tensor, context: Any = None) -> Tensor:
        return self.body(x.flatten(1)).reshape(-1, *self.shape)


def make() -> VAE:
    """Our model on the shared networks."""
    model = build({
        "family": "vae", "event_shape": [1, 28, 28], "latent_dim": LATENT,
        "likelihood": "bernoulli", "encoder": _Plain(encoder(), (2 * LATENT,)),
        "decoder": _Plain(decoder(), (1, 28, 28)),
    })  # fmt: skip
    assert isinstance(model, VAE)
    return model


def ours(train: Digits, epochs: int, seed: int, folder: Path) -> tuple[VAE, float]:
    """Trained by `fit`, with its averaged weights, and the seconds."""
    torch.manual_seed(seed)
    steps = epochs * len(train) // BATCH

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, None]:
        epoch, part = divmod(step, len(train) // BATCH)
        order = torch.randperm(len(train), generator=keyed_generator(seed, epoch))
        return train.binary[order[part * BATCH : (part + 1) * BATCH]], None

    options = FitConfig(
        steps=steps, learning_rate=RATE, weight_decay=0.0, validate_every=0, ema=0.998, seed=seed
    )
    done = fit(make(), batches, options, folder=folder / f"vae_{seed}", resume=True, device="cpu")
    assert isinstance(done.model, VAE)
    return done.model.eval(), done.seconds


def pythae(
    python: Path, train: Digits, held: Digits, epochs: int, seed: int, folder: Path
) -> tuple[VAE, float, float]:
    """The weights of pythae in our model, its seconds, and its own estimate of ln p(x) in nats."""
    kept = folder / f"pythae_{seed}_{epochs}.npz"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as temporary:
            given, found = Path(temporary) / "in.npz", Path(temporary) / "out.npz"
            np.savez(
                given, train=train.binary, held=held.binary, epochs=epochs, batch=BATCH,
                rate=RATE, seed=seed, draws=DRAWS,
            )  # fmt: skip
            command = [python, "-c", SCRIPT, given, found, Path(__file__).parent]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise AleatorError(f"pythae in {python} failed: {last}")
            folder.mkdir(parents=True, exist_ok=True)
            draft = kept.with_suffix(".partial")
            draft.write_bytes(found.read_bytes())
            draft.replace(kept)
    model = make()
    with np.load(kept) as found_weights:
        weights = {k: torch.as_tensor(v) for k, v in found_weights.items()}
    own, seconds = (float(weights.pop(k)) for k in ("own", "seconds"))
    for name, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        assert isinstance(network, _Plain)
        part = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        network.body.load_state_dict(part)
    return model.eval(), seconds, own


@torch.no_grad()
def bounds(model: VAE, held: Digits) -> dict[str, float]:
    """ELBO and IWAE-50 bound of held-out images in nats, with standard errors over images."""
    elbo = model.elbo(held.binary, draws=DRAWS, generator=keyed_generator(7)).value
    tight = model.log_prob(held.binary, draws=DRAWS, generator=keyed_generator(8)).value
    root = math.sqrt(len(held))
    return {
        "elbo": elbo.mean().item(), "elbo_error": elbo.std().item() / root,
        "iwae": tight.mean().item(), "iwae_error": tight.std().item() / root,
    }  # fmt: skip


def rows(
    train: Digits, held: Digits, folder: Path, epochs: int, seeds: int, python: Path | None
) -> tuple[list[dict[str, Any]], VAE]:
    """A row for each library, means over seeds of training; and our first model."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "pythae": []}
    first = None
    for seed in range(seeds):
        since = time.monotonic()
        model, seconds = ours(train, epochs, seed, folder)
        first = first or model
        found["ours"].append({**bounds(model, held), "seconds": seconds})
        if python is not None:
            model, seconds, own = pythae(python, train, held, epochs, seed, folder)
            found["pythae"].append({**bounds(model, held), "seconds": seconds, "own": own})
        print(f"vae, seed {seed}: {time.monotonic() - since:.0f} s", flush=True)
    assert first is not None
    return [_mean(name, each) for name, each in found.items() if each], first


def _mean(name: str, each: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"library": name, "seeds": len(each)}
    for key in each[0]:
        row[key] = float(np.mean([one[key] for one in each]))
    for key in ("elbo", "iwae"):
        spread = [one[key] for one in each]
        row[f"{key}_seeds"] = float(np.std(spread, ddof=1)) if len(each) > 1 else None
    return row
