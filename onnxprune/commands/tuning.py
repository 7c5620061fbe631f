"""The commands of fine-tuning and of the hand-off."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxprune import options as o
from onnxprune.commands import tuning_options as t
from onnxprune.commands.writing import place
from onnxprune.errors import Exit, TargetError, UsageError
from onnxprune.signature import taking
from onnxprune.terminal import progress, show, show_json

if TYPE_CHECKING:
    from onnxprune.report.tuning import TuneReport

Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Trained weights by initializer name: .safetensors.")]
Bundle = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write.")]


@taking(t.Tuning)
def finetune(model: o.Source, given: t.Tuning) -> None:
    """Train a pruned model to answer as its original does; needs torch: pip install 'onnxprune\\[finetune]'.

    The weights go back into the same graph. Writes MODEL.tuned.onnx unless -o names another file.
    """
    with progress(given.quiet):
        from onnxprune import files
        from onnxprune.finetuning.tune import finetune as tune
        from onnxprune.finetuning.tune import require_torch

        require_torch()
        replace = given.force or given.resume  # what the interrupted run wrote
        out = place(model, given.output, ".tuned.onnx", replace)
        checkpoint = out.with_name(f"{out.name}.checkpoint")
        if given.resume and not checkpoint.exists():
            raise UsageError(f"--resume: there is no checkpoint '{checkpoint}'; leave out --resume to start anew")
        tuned = tune(model, checkpoint=checkpoint, **given.arguments())
        usable = tuned.report.epoch > 0 or not (tuned.report.failed or tuned.report.interrupted)
        if usable:
            files.write_model(tuned.model, out, source=model, force=replace)
        if not tuned.report.interrupted:  # a loss that is not finite would be met again
            checkpoint.unlink(missing_ok=True)
    if usable:
        tell(tuned.report, out, given.as_json, given.quiet)
    end(tuned.report, out, usable)


def tell(report: TuneReport, out: Path | str, as_json: bool, quiet: bool) -> None:
    """Print a report."""
    if as_json:
        show_json(report.as_dict() | {"output": str(out)})
    elif not quiet:
        from onnxprune.report import tuning as text

        show(text.tuning(report, out))


def end(report: TuneReport, out: Path, written: bool, step: int = 1, steps: int = 1) -> None:
    """The exit code of a run that stopped short: 130 after Ctrl-C, 1 where the loss was not finite.

    step, steps: of how many cuts it followed which.
    """
    what = f"'{out}' has the best weights so far, of epoch {report.epoch}" if written else "nothing was written"
    what += f"; it is that of step {step} of {steps}: the target is not reached" if step < steps else ""
    if report.failed:
        raise TargetError(f"{report.stopped}; {what}")
    if report.interrupted:
        sys.stderr.write(f"error: {report.stopped}; {what}\n")
        raise typer.Exit(int(Exit.INTERRUPTED))


def handoff(
    model: o.Source,
    output: Bundle,
    teacher: t.MaybeTeacher = None,
    plan: t.PlanFile = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a folder with all that other training code needs: models, weights by name, a map, a script, a README."""
    with progress(quiet):
        from onnxprune.finetuning import bundle

        written = bundle.handoff(model, output, teacher=teacher, plan=plan, force=force)
    if as_json:
        show_json({"model": str(model), "output": str(output), "files": [p.name for p in written]})
    elif not quiet:
        from onnxprune.report import tuning as text

        show(text.handing_over(model, output, [p.name for p in written]))


def absorb(
    model: o.Source,
    weights: Weights,
    output: o.Out = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Put trained weights back into a pruned model, and say what changed; the graph stays as it is.

    Writes MODEL.tuned.onnx unless -o names another file.
    """
    with progress(quiet):
        from onnxprune import files
        from onnxprune.finetuning import bundle

        out = place(model, output, ".tuned.onnx", force)
        taken = bundle.absorb(model, weights)
        files.write_model(taken.model, out, source=model, force=force)
    if as_json:
        show_json({"model": str(model), "output": str(out)} | taken.as_dict())
    elif not quiet:
        from onnxprune.report import tuning as text

        show(text.absorbing(model, weights, out, taken.changed, taken.same, taken.missing))
