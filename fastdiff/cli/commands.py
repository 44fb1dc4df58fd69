"""The list of commands. A command's own file is imported only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from fastdiff import __version__
from fastdiff.cli.engine_commands import engine

app = typer.Typer(
    name="fastdiff",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Diffusion sampling as a table of numbers and one fused step.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure on this machine.")
app.add_typer(bench, name="bench")
app.add_typer(engine, name="engine")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"fastdiff {__version__}")
        raise typer.Exit


@app.command()
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What to draw; several prompts are allowed."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="A sampler of fastdiff's registry.  [default: dpmpp_2m; lcm with --few-step]",
            metavar="NAME",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Calls of the network for a picture.  [default: 20; as --few-step]"),
    ] = None,
    few_step: Annotated[
        int | None,
        typer.Option(
            help="So many steps of the built-in model's student, distilled for 1 to 8 of them, "
            "with LCM and without guidance."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Picture j of a prompt uses seed + j.")] = 0,
    count: Annotated[int, typer.Option(help="Pictures for each prompt.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance scale.  [default: the model's; 7.5 elsewhere]"),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Where the steps lie.  [default: the model's own]", metavar="NAME"),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to stay away from.")] = "",
    scale: Annotated[
        int, typer.Option(help="Also write copies this many times larger to out/x<SCALE>/.")
    ] = 1,
    sheet: Annotated[
        bool, typer.Option(help="With two or more pictures, a contact sheet in out/sheet/.")
    ] = True,
    model: Annotated[
        Path | None,
        typer.Option(help="A local diffusers Stable Diffusion folder.  [default: built in]"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures that the network sees at once.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..")] = "cpu",
    engine: Annotated[
        Path | None,
        typer.Option(help="A bundle of fastdiff export, whose U-Net runs instead of --model's."),
    ] = None,
    trust_engine: Annotated[
        bool, typer.Option("--trust-engine", help="Take TensorRT plans from the bundle itself.")
    ] = False,
    noise: Annotated[
        str,
        typer.Option(
            help="diffusers: of PyTorch's generators, as pipelines draw it; philox: of the seed by "
            "a formula that every language has.",
            metavar="NAME",
        ),
    ] = "diffusers",
    repeat: Annotated[
        Path | None,
        typer.Option(help="Run again what this generate.json records; only --out is heeded."),
    ] = None,
) -> None:
    """Pictures from prompts: <index>-<seed>.png and generate.json in the folder --out."""
    from fastdiff.cli.generate import Request, run

    if repeat is not None:
        run(Request.of_record(repeat, out, trust_engine))
        return
    run(
        Request(
            prompts=prompts or [],
            sampler=sampler or ("dpmpp_2m" if few_step is None else "lcm"),
            steps=steps if steps is not None else 20 if few_step is None else few_step,
            few_step=few_step,
            seed=seed,
            count=count,
            out=out,
            guidance=guidance,
            spacing=spacing,
            negative_prompt=negative_prompt,
            scale=scale,
            sheet=sheet,
            model=model,
            batch=batch,
            device=device,
            engine=engine,
            trust_engine=trust_engine,
            noise=noise,
        )
    )


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="'shapes', the built-in model, a local diffusers folder, or a U-Net's.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; must not be there.")],
    target: Annotated[
        str, typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx.", metavar="NAME")
    ] = "onnxruntime",
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32 or fp16.  [default: fp32; fp16 for TensorRT]", metavar="NAME"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Samples at once, twice the pictures with guidance.  [default: 1:2:8]"),
    ] = None,
    height: Annotated[
        str | None,
        typer.Option(help="Pixels, min:opt:max, several by commas.  [default: from the model]"),
    ] = None,
    width: Annotated[str | None, typer.Option(help="As --height.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Of the text.  [default: 1 : the model's : 3 times that]")
    ] = None,
    controlnet: Annotated[
        bool, typer.Option("--controlnet", help="With inputs for a ControlNet's residuals.")
    ] = False,
    vae: Annotated[bool, typer.Option("--with-vae", help="Its decoder and encoder, too.")] = False,
    text_encoder: Annotated[
        bool, typer.Option("--with-text-encoder", help="One or both of them, too.")
    ] = False,
    step: Annotated[
        bool, typer.Option("--with-step", help="A graph of a whole sampler step, too.")
    ] = False,
    sampler: Annotated[
        list[str] | None,
        typer.Option(help="A table NAME:STEPS; may be repeated.  [default: four]", metavar="NAME"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Of the tables.  [default: the built-in model's; 7.5 elsewhere]"),
    ] = None,
    verify: Annotated[
        str,
        typer.Option(help="Where numbers are compared: corners of the ranges, or smallest."),
    ] = "corners",
    memory_limit: Annotated[
        int | None,
        typer.Option(help="Bytes of scratch memory that a layer of a TensorRT plan may use."),
    ] = None,
    refittable: Annotated[
        bool, typer.Option("--refittable", help="TensorRT engines that take other weights.")
    ] = False,
    strip: Annotated[
        bool,
        typer.Option("--strip", help="TensorRT engines without weights, which the graph has."),
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="TensorRT engines larger than the GPU.")
    ] = False,
    capability: Annotated[
        list[str] | None,
        typer.Option(help="For tensorrt-rtx, may be repeated.  [default: 8.0 8.6 8.9 12.0]"),
    ] = None,
    plans: Annotated[
        bool, typer.Option(help="Build TensorRT's plans now, not where the bundle is loaded.")
    ] = True,
    replace: Annotated[
        bool, typer.Option("--replace", help="A bundle that is already in --out.")
    ] = False,
) -> None:
    """A model's networks as ONNX or TensorRT, checked against PyTorch, in one folder."""
    from fastdiff.cli.export import run

    run(
        model,
        out,
        target=target,
        dtype=dtype,
        batch=batch,
        height=height,
        width=width,
        tokens=tokens,
        controlnet=controlnet,
        vae=vae,
        text_encoder=text_encoder,
        step=step,
        samplers=sampler,
        guidance=guidance,
        verify=verify,
        plans=plans,
        replace=replace,
        memory_limit=memory_limit,
        refittable=refittable,
        strip=strip,
        weight_streaming=weight_streaming,
        capabilities=tuple(capability or ()),
    )


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Versions, CPU features, devices, and what runs each op here, or why it cannot."""
    from fastdiff.cli.info import print_info

    print_info(json=as_json)


@app.command()
def samplers(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Every sampler: order, calls of the network a step, noise, and its names elsewhere."""
    from fastdiff.cli.samplers import print_samplers

    print_samplers(json=as_json)


@app.command()
def doctor(
    pipe: Annotated[
        Path, typer.Argument(metavar="PIPE", help="A local folder of a diffusers pipeline.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The distilled checkpoint in it, a name of few_step.  [default: guessed]",
            metavar="NAME",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Known traps in a pipeline's configs, and what would do; exit status 1 if there are any."""
    from fastdiff.cli.doctor import print_doctor

    if print_doctor(pipe, recipe, json=as_json):
        raise typer.Exit(1)


@app.command()
def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="'shapes', the built-in model, or a local diffusers folder."
        ),
    ],
    steps: Annotated[int, typer.Option(help="Calls of the network, 2 .. 20.")] = 5,
    folder: Annotated[
        Path, typer.Option(help="Folder for plan, card and what it takes to resume.")
    ] = Path("tune"),
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance scale.  [default: the model's; 7.5 elsewhere]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="First seed of the fit.")] = 100_000,
    held_out_seed: Annotated[int, typer.Option(help="First seed to score on.")] = 200_000,
    fit: Annotated[int, typer.Option(help="Seeds of the fit.")] = 64,
    held_out: Annotated[int, typer.Option(help="Seeds to score on.")] = 96,
    fine: Annotated[int, typer.Option(help="Calls of the reference.")] = 100,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A prompt a line, every second one to score on.  [default: built in]"),
    ] = None,
    threads: Annotated[int, typer.Option(help="Of the CPU.")] = 1,
) -> None:
    """Fit a table of few calls to one network: its time grid, then its coefficients."""
    from fastdiff.cli.tune import tune as run

    run(
        model,
        steps=steps,
        folder=folder,
        guidance=guidance,
        seed=seed,
        held_out_seed=held_out_seed,
        fit=fit,
        held_out=held_out,
        fine=fine,
        prompts=prompts,
        threads=threads,
    )


@bench.command()
def accuracy(
    out: Annotated[
        Path, typer.Option(help="Folder for accuracy.json, .svg and .md; a run there is resumed.")
    ] = Path("accuracy"),
    budgets: Annotated[
        str | None,
        typer.Option(help="Calls of the network.  [default: 5,6,8,10,15,20,30,50]"),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="vp or flow.  [default: both]", metavar="NAME")
    ] = None,
    solver: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.", metavar="NAME")
    ] = None,
    samples: Annotated[int, typer.Option(help="Runs of a solver that draws noise.")] = 8192,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not resume.")] = False,
) -> None:
    """Error against calls on data with an exact solution, beside diffusers' own classes."""
    from fastdiff.cli.bench import accuracy as run

    run(out, budgets, family, solver, samples, fresh)


@bench.command()
def quality(
    out: Annotated[
        Path, typer.Option(help="Folder for quality.json, .csv, .svg and .md; a run is resumed.")
    ] = Path("quality"),
    steps: Annotated[
        str | None, typer.Option(help="Steps of a run.  [default: 1,2,4,6,8,10,15,20,30,50]")
    ] = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.", metavar="NAME")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures a sampler and number of steps.")] = 64,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 16,
    compared: Annotated[
        int, typer.Option(help="Pictures, of the first batch, with a reference in float64.")
    ] = 8,
    student: Annotated[
        Path | None, typer.Option(help="U-Net folder of a distilled student, to be compared.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of the CPU.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not resume.")] = False,
) -> None:
    """Right pictures and distance against steps, every sampler, on the built-in model."""
    from fastdiff.cli.quality import quality as run

    run(
        out,
        steps=steps,
        sampler=sampler,
        pictures=pictures,
        batch=batch,
        compared=compared,
        student=student,
        threads=threads,
        fresh=fresh,
    )
