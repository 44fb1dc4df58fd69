"""The few-step student of the built-in model: its folder, its pipeline, its export.

    python -m fastdiff.shapes.student --folder runs/student --out fastdiff/shapes/weights/few_step

The folder holds what differs from the teacher: unet/ (fp16 safetensors) and scheduler/ (LCM).
Without fastdiff it is

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    pipe = StableDiffusionPipeline.from_pretrained(base, unet=unet, scheduler=scheduler)
    pipe("a red circle", num_inference_steps=4, guidance_scale=1.0)
"""

import argparse
from pathlib import Path

import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from fastdiff.shapes import checkpoint
from fastdiff.shapes.fingerprint import weights_hash
from fastdiff.shapes.networks import NOISE_SCHEDULE

WEIGHTS = Path(__file__).parent / "weights"
TEACHER, FOLDER = WEIGHTS / "base", WEIGHTS / "few_step"
CHECKPOINT = "student.pt"


def scheduler() -> LCMScheduler:
    """The student's sampler: 50 original steps, boundary condition of scaling 10."""
    return LCMScheduler(
        **NOISE_SCHEDULE,
        original_inference_steps=50,
        timestep_scaling=10.0,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        rescale_betas_zero_snr=False,
    )


def times(steps: int) -> list[int]:
    """The student's model times of a run, descending: LCMScheduler's.

    Raises ValueError where steps is not 1 .. 50.
    """
    if not 1 <= steps <= 50:
        raise ValueError(f"steps must be 1 .. 50, the times that it was taught; got {steps}")
    chosen = scheduler()
    chosen.set_timesteps(steps)
    return [int(t) for t in chosen.timesteps]


def is_student(folder: Path) -> bool:
    """Whether a folder is an exported student or one's training folder."""
    if (folder / "model_index.json").exists():
        return False
    return (folder / CHECKPOINT).exists() or (folder / "unet" / "config.json").exists()


def unet_of(folder: Path) -> UNet2DConditionModel:
    """The student's network in float32, averaged weights, from either kind of folder."""
    state = checkpoint.load(folder / CHECKPOINT)
    if state is None:
        found: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", torch_dtype=torch.float32, local_files_only=True
        )
        return found.eval()
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(state["config"])
    with torch.no_grad():
        for p, value in zip(unet.parameters(), state["average"]["values"], strict=True):
            p.copy_(value)
    return unet.eval()


def pipeline(folder: Path = FOLDER, teacher: Path = TEACHER) -> StableDiffusionPipeline:
    """The teacher's pipeline with the student's network and scheduler, in float32."""
    pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
        teacher,
        unet=unet_of(folder),
        scheduler=scheduler(),
        dtype=torch.float32,
        local_files_only=True,
    )
    return pipe


def export(folder: Path, out: Path) -> None:
    """Write unet/ and scheduler/ of a training folder's last checkpoint, and a line in its log."""
    state = checkpoint.load(folder / CHECKPOINT)
    if state is None:
        raise FileNotFoundError(
            f"folder must hold {CHECKPOINT}; {folder} does not. "
            f"Run python -m fastdiff.shapes.distill --folder {folder}"
        )
    unet_of(folder).half().save_pretrained(out / "unet", safe_serialization=True)
    scheduler().save_pretrained(out / "scheduler")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    minutes = round(state["minutes"], 2)
    checkpoint.log(folder, "export", step=state["step"], minutes=minutes, weights=weights_hash(out))


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.shapes.student", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of fastdiff.shapes.distill")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    export(options.folder, options.out)


if __name__ == "__main__":
    main()
