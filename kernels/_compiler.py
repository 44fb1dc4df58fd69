"""Which compiler the launch plans are for; the gates (tests/gates) are green with both."""

import triton

OLD = triton.__version__.startswith("3.6.")  # the lower bound: other layouts, another ptxas
