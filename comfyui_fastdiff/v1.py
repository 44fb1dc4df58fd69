"""The nodes for a ComfyUI without comfy_api.latest."""

from . import core


class FastdiffSampler:
    """A SAMPLER for SamplerCustom and SamplerCustomAdvanced."""

    CATEGORY, FUNCTION, RETURN_TYPES = core.CATEGORY, "execute", ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls):
        number = {"default": core.OWN, "min": core.OWN, "max": 100.0, "step": 0.01, "round": False}
        return {
            "required": {
                "sampler": (core.SAMPLERS, {"default": core.DEFAULT}),
                "eta": ("FLOAT", {**number, "tooltip": core.TOOLTIPS["eta"]}),
                "s_noise": ("FLOAT", {**number, "tooltip": core.TOOLTIPS["s_noise"]}),
            }
        }

    def execute(self, sampler, eta, s_noise):
        return (core.sampler(sampler, eta, s_noise),)


class FastdiffSigmas:
    """SIGMAS of a spacing between the levels that the model was trained at."""

    CATEGORY, FUNCTION, RETURN_TYPES = core.CATEGORY, "execute", ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls):
        share = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "spacing": (core.SPACINGS, {"default": core.SPACINGS[0]}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {**share, "tooltip": core.TOOLTIPS["denoise"]}),
            }
        }

    def execute(self, model, spacing, steps, denoise):
        return (core.sigmas(model, spacing, steps, denoise),)


NODE_CLASS_MAPPINGS = {"FastdiffSampler": FastdiffSampler, "FastdiffSigmas": FastdiffSigmas}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FastdiffSampler": "Sampler (fastdiff)",
    "FastdiffSigmas": "Sigmas (fastdiff)",
}
