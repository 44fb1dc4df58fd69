"""accelerate, report, restore: what fastdiff does to a pipeline that exists, and how to see it.

python examples/accelerate_and_report.py [--model PATH] [--steps 10]
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import fastdiff
from fastdiff.cli.model import built_in


def main(argv: list[str] | None = None) -> object:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=built_in(), help="a diffusers folder")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(argv)

    pipe = StableDiffusionPipeline.from_pretrained(
        options.model, dtype=torch.float32, safety_checker=None
    )
    fastdiff.accelerate(pipe)
    pipe("a red circle", num_inference_steps=options.steps, output_type="np")
    report = fastdiff.report(pipe)
    print("accelerated\n")
    print(report)

    fastdiff.restore(pipe)
    print("\nrestored\n")
    print(fastdiff.report(pipe))
    return report


if __name__ == "__main__":
    main()
