"""Solvers as pure float64 functions row(grid, i, k) -> Row (see row.py); one method a file."""
