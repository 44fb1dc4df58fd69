"""What a diffusers scheduler's config says of noise levels and of where steps lie."""

from typing import Any

from fastdiff.schedules.noise import NoiseSchedule


def noise_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """The model family that a scheduler's config describes."""
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if config.get("trained_betas") is not None:
        return NoiseSchedule.from_betas(config["trained_betas"], zero_snr)
    return NoiseSchedule.vp(
        config["beta_schedule"],
        config["num_train_timesteps"],
        config["beta_start"],
        config["beta_end"],
        zero_snr,
    )


def default_spacing(config: dict[str, Any]) -> str:
    """The spacing that a scheduler's config asks for."""
    for name, flag in (
        ("karras", "use_karras_sigmas"),
        ("exponential", "use_exponential_sigmas"),
        ("beta", "use_beta_sigmas"),
        ("lu", "use_lu_lambdas"),
    ):
        if config.get(flag):
            return name
    return str(config.get("timestep_spacing", "leading"))


__all__ = ["default_spacing", "noise_schedule"]
