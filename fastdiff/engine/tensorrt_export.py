"""The plans of a bundle: built from its U-Net's graph through the cache, copied into its folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdiff.engine import cache, here, tensorrt, tensorrt_build
from fastdiff.engine.manifest import Engine, Graph, Profile, Target

if TYPE_CHECKING:
    from fastdiff.engine.export import Step


def engines(
    target: str,
    folder: Path,
    graph: Graph,
    profiles: Sequence[Profile],
    *,
    name: str = "unet",
    tell: Callable[[Step], None] | None = None,
    memory_limit: int | None = None,
    refittable: bool = False,
    weight_streaming: bool = False,
    progress: bool = True,
) -> tuple[Target, list[Engine]]:
    """A plan NAME-PROFILE.plan in `folder` for every profile, and whom they are for.

    graph     the file in `folder` that `name` stands for in the manifest
    tell      called with a Step after each plan
    others    as tensorrt_build.build has them; EngineError as there
    """
    from fastdiff.engine import export  # which imports this module when it builds

    settings = tensorrt_build.Settings(memory_limit, refittable, False, weight_streaming)
    flavour, found = tensorrt.load(target), here.look(target)
    made = []
    for i, profile in enumerate(profiles):
        begun = time.perf_counter()
        (plan,) = tensorrt_build.plans(
            folder / graph.file, [profile], target, settings, store=cache, progress=progress
        )
        file = f"{name}-{i}.plan"
        shutil.copyfile(plan, folder / file)
        made.append(Engine(file=file, graph=name, profile=i, refittable=refittable))
        if tell is not None:
            seconds = time.perf_counter() - begun
            what = f"plan {i + 1} of {len(profiles)}"
            tell(export.Step(name, what, seconds, plan.stat().st_size))
        cache.release(plan.parent.name)
    capability = ",".join(settings.capabilities) if flavour.portable else found.compute_capability
    where = Target(
        name=target,  # type: ignore[arg-type]
        version=flavour.version,
        cuda=found.cuda if not flavour.portable else None,
        driver=found.driver if not flavour.portable else None,
        compute_capability=capability,
        os=found.os,
        machine=found.machine,
    )
    return where, made


__all__ = ["engines"]
