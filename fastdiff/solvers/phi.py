"""phi functions of exponential integrators, without cancellation.

    phi_0(z) = exp(z),    phi_{k+1}(z) = (phi_k(z) - 1/k!) / z,    phi_k(0) = 1/k!

Hochbruck & Ostermann 2010, "Exponential integrators", section 2.1.  The recurrence loses about
k! / |z|^k ulps near zero (phi_3 at z = 1e-3: nine digits), so small arguments use the Taylor series
sum_j z^j / (j + k)!.
"""

import math

SERIES_BELOW = 1.0  # |z| < 1: 20 terms leave less than 1 / 20! = 4e-19
TERMS = 20


def phi(k: int, z: float) -> float:
    """phi_k(z) to about 1e-15 relative for k <= 4."""
    if abs(z) < SERIES_BELOW:
        total = 0.0
        for j in reversed(range(TERMS)):
            total += z**j / math.factorial(j + k)
        return total
    if k == 0:
        return math.exp(z)
    if k == 1:
        return math.expm1(z) / z
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z
