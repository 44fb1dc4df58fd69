"""Networks out of Python: ONNX graphs and engines in a bundle that says what it is.

manifest.py   what is in a bundle, as a schema;  bundle.py  its folder: written whole, verified
networks.py   the modules that are exported;     export.py  a pipeline to a bundle
load.py       a bundle to what takes the U-Net's place in a pipeline
"""
