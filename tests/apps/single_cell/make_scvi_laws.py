"""Write scvi_laws.json: log-masses of counts by scvi-tools, which our tests compare with.

    python tests/apps/single_cell/make_scvi_laws.py      # in an environment that has scvi-tools

scvi-tools needs other versions of torch than ours does, so that its numbers are kept instead.
"""

import itertools
import json
from pathlib import Path

import scvi
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

CASES = list(
    itertools.product(
        (0.0, 1.0, 2.0, 7.0, 40.0, 900.0),  # counts
        (0.003, 0.4, 3.0, 60.0),  # means
        (0.1, 1.0, 12.0, 500.0),  # dispersions
        (-4.0, 0.5),  # logits of an inserted zero
    )
)


def main() -> None:
    """Evaluate all cases in double precision."""
    x, mu, theta, zero = torch.tensor(CASES, dtype=torch.float64).T
    nb = NegativeBinomial(mu=mu, theta=theta).log_prob(x)
    zinb = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zero).log_prob(x)
    names = ("count", "mean", "dispersion", "zero_logit", "nb", "zinb")
    columns = (x, mu, theta, zero, nb, zinb)
    table = {name: column.tolist() for name, column in zip(names, columns, strict=True)}
    made = {"made_with": f"scvi-tools {scvi.__version__}, torch {torch.__version__}"}
    path = Path(__file__).with_name("scvi_laws.json")
    path.write_text(json.dumps(made | table, indent=0) + "\n")


if __name__ == "__main__":
    main()
