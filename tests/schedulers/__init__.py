"""Tests of fastdiff.schedulers and fastdiff.accelerate against the installed diffusers."""
