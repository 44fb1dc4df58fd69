"""diffusers' own scheduler tests, run on our classes: `python -m tests.upstream SUITE`."""
