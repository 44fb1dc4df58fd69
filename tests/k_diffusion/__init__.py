"""Tests of fastdiff.k_diffusion."""
