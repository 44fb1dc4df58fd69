"""The nodes in the V3 schema."""

from comfy_api.latest import ComfyExtension, io

from . import core


class FastdiffSampler(io.ComfyNode):
    """A SAMPLER for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        number = {"default": core.OWN, "min": core.OWN, "max": 100.0, "step": 0.01, "round": False}
        return io.Schema(
            node_id="FastdiffSampler",
            display_name="Sampler (fastdiff)",
            category=core.CATEGORY,
            inputs=[
                io.Combo.Input("sampler", options=core.SAMPLERS, default=core.DEFAULT),
                io.Float.Input("eta", tooltip=core.TOOLTIPS["eta"], **number),
                io.Float.Input("s_noise", tooltip=core.TOOLTIPS["s_noise"], **number),
            ],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler, eta, s_noise):
        return io.NodeOutput(core.sampler(sampler, eta, s_noise))


class FastdiffSigmas(io.ComfyNode):
    """SIGMAS of a spacing between the levels that the model was trained at."""

    @classmethod
    def define_schema(cls):
        share = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="FastdiffSigmas",
            display_name="Sigmas (fastdiff)",
            category=core.CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("spacing", options=core.SPACINGS, default=core.SPACINGS[0]),
                io.Int.Input("steps", default=20, min=1, max=10000),
                io.Float.Input("denoise", tooltip=core.TOOLTIPS["denoise"], **share),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, model, spacing, steps, denoise):
        return io.NodeOutput(core.sigmas(model, spacing, steps, denoise))


class FastdiffExtension(ComfyExtension):
    async def get_node_list(self):
        return [FastdiffSampler, FastdiffSigmas]


async def comfy_entrypoint():
    return FastdiffExtension()
