"""What a network predicts, as numbers: x_0 and the noise as combinations of x and the raw output e.

For x = alpha x_0 + sigma n, and c the factor that scales x to unit variance (the network's input):

    epsilon          e = n                           x_0 = (x - sigma e) / alpha
    sample           e = x_0
    v_prediction     e = c alpha n - c sigma x_0     x_0 = c^2 alpha x - c sigma e
    flow_prediction  e = n - x_0, alpha + sigma = 1  x_0 = x - sigma e

Salimans & Ho 2022, arXiv:2202.00512 (v); Lipman et al. 2022, arXiv:2210.02747 (flow).
"""

from __future__ import annotations

from typing import NamedTuple

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Conversion(NamedTuple):
    """x_0 = kx x + ke e and n = qx x + qe e."""

    kx: float
    ke: float
    qx: float
    qe: float


def convert(prediction: str, alpha: float, sigma: float, scale: float = 1.0) -> Conversion:
    """The numbers for one noise level; scale is c above (1 where alpha^2 + sigma^2 = 1)."""
    if prediction == "epsilon":
        if alpha == 0:
            raise ValueError(
                "prediction 'epsilon' says nothing of x_0 at a level with no signal (alpha = 0); "
                "begin below it (sigma < 1 of a flow), or predict x_0, v or the velocity"
            )
        return Conversion(1 / alpha, -sigma / alpha, 0.0, 1.0)
    if prediction == "sample":
        noise = (1 / sigma, -alpha / sigma) if sigma > 0 else (0.0, 0.0)
        return Conversion(0.0, 1.0, *noise)
    if prediction == "v_prediction":
        a, s = scale * alpha, scale * sigma
        return Conversion(scale * a, -s, scale * s, a)
    if prediction == "flow_prediction":
        return Conversion(1.0, -sigma, 1.0, alpha)
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}")


def perfect(prediction: str, alpha: float, sigma: float, scale: float = 1.0) -> tuple[float, float]:
    """What a network without error returns, as weights of (x_0, n): the definitions above."""
    if prediction == "epsilon":
        return 0.0, 1.0
    if prediction == "sample":
        return 1.0, 0.0
    if prediction == "v_prediction":
        return -scale * sigma, scale * alpha
    if prediction == "flow_prediction":
        return -1.0, 1.0
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}")


def edm(prediction: str, sigma: float, data: float) -> Conversion:
    """The numbers of EDM's preconditioning at x = x_0 + sigma n, for data of that deviation.

    x_0 = c_skip x + c_out e,  c_skip = data^2 / (sigma^2 + data^2),
    c_out = sigma data / (sigma^2 + data^2)^(1/2), of v_prediction with the other sign.
    Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction must be one of epsilon, v_prediction; got {prediction!r}")
    whole = sigma * sigma + data * data
    out = (data if prediction == "epsilon" else -data) / whole**0.5
    return Conversion(data * data / whole, sigma * out, sigma / whole, -out)
