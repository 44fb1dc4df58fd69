"""fastdiff in ComfyUI: copy this folder into custom_nodes, with fastdiff in ComfyUI's environment.

Two nodes: a SAMPLER for every solver of fastdiff.k_diffusion (all but tcd), and SIGMAS of the
spacings.  Where ComfyUI has comfy_api.latest they are V3 nodes, else V1.
"""

try:
    import comfy_api.latest  # noqa: F401
except ImportError:
    from .v1 import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
else:
    from .v3 import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
