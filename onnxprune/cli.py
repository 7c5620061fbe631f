"""The command line: parse, call the API, print. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from onnxprune import __version__
from onnxprune import options as o
from onnxprune.commands import measuring, record, reporting, sparsify, tuning, tuning_options, validating
from onnxprune.commands import search as searches
from onnxprune.commands.writing import place
from onnxprune.errors import Exit, TargetError, UsageError
from onnxprune.signature import taking
from onnxprune.terminal import boundary, progress, show, show_json, warn_made_up, write

# Everything else is imported inside the commands, so that --help does not wait for onnx, onnxruntime and scipy.
if TYPE_CHECKING:
    from onnxprune.api import Result
    from onnxprune.report.tuning import TuneReport

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 target not met, 2 usage, 3 unusable model or plan, 4 files or memory, 5 our bug.",
)


class _Guarded(TyperCommand):
    """A command whose errors become a message and an exit code; its arguments are noted, for reports.

    Its help ends with the name of its page.
    """

    def __init__(self, name: str | None, **given: Any) -> None:
        super().__init__(name, **given | {"epilog": f"Examples and all details: onnxprune/pages/{name}.md"})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        record.ARGUMENTS.set((self.name or "", *args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with boundary():
            return super().invoke(ctx)


def _version(wanted: bool) -> None:
    if wanted:
        write(f"onnxprune {__version__}\n")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


@app.callback()
def _root(version: Version = False) -> None:
    """Structured pruning of exported ONNX models: smaller and faster, from the graph alone."""


@app.command(cls=_Guarded)
@taking(tuning_options.Compression)
def compress(model: o.Source, given: tuning_options.Compression) -> None:
    """Remove filters until the model keeps at most a fraction of its FLOPs, parameters, bytes or latency; verified.

    Give one of --flops, --params, --size and --latency. Writes MODEL.pruned.onnx unless -o names another file. With
    --finetune, the result is then trained to answer as the original does.
    """
    with progress(given.quiet):
        from onnxprune.finetuning import stages

        given.check()
        out = place(model, given.output, ".pruned.onnx", given.force)
        _check_plan(model, out, given.save_plan, given.force)
        record.check_page(given.report, (model,), given.data, beside={"-o": out, "--save-plan": given.save_plan})
        if given.max_drop is not None:
            _compress_within(model, out, given)
            return
        done = stages.staged(model, given.arguments(), steps=given.steps, tuning=given.tuning())
        _write(done.result, model, out, force=given.force, stamp=given.stamp, plan_out=given.save_plan)
    used = (model, given.data, given.finetune)
    _report(done.result, out, given.as_json, given.quiet, done.tuned, used, given.report, given.steps)


def _compress_within(model: Path, out: Path, given: tuning_options.Compression) -> None:
    """`compress --max-drop`."""
    from onnxprune.within import compress_within

    if given.finetune is not None or given.steps != 1 or given.int8:
        raise UsageError("--max-drop cannot be had with --finetune, --steps or --int8")
    assert given.max_drop is not None
    found = compress_within(model, max_drop=given.max_drop, metric=given.metric, **given.arguments())
    _write(found.result, model, out, force=given.force, stamp=given.stamp, plan_out=given.save_plan)
    told = found.result.report.as_dict() | {"max_drop": found.as_dict(), "output": str(out)}
    told |= record.made(model, out, given.data)
    record.write_page(told, given.report)
    if given.as_json:
        show_json(told)
    elif not given.quiet:
        from onnxprune.report import text
        from onnxprune.report.within import within

        show(text.compression(found.result.report, out, measured=True))
        write("\n")
        show(within(found.limit, [(t.kept, t.drop, t.within) for t in found.trials], found.final, found.samples[2]))
    if not found.held:
        raise TargetError(f"'{out}' was written, but on the inputs kept aside the drop is {found.final.drop.point:.2f}")


@app.command(cls=_Guarded)
@taking(o.Planning)
def plan(model: o.Source, given: o.Planning) -> None:
    """Decide what `compress` would remove, and write it down as JSON: to stdout, or to the file of -o."""
    with progress(given.quiet):
        from onnxprune import api, files
        from onnxprune.plan import dumps

        if given.output is not None:
            files.check_output(given.output, model, given.force)
        decided = api.make_plan(model, **given.arguments())
        if given.output is not None:
            files.write_text(given.output, dumps(decided), source=model, force=given.force)
    if given.as_json or given.output is None:
        write(dumps(decided))
    elif not given.quiet:
        from onnxprune.report import text

        show(text.prediction(decided, model, given.output))
    if given.quiet or (given.output is None and not given.as_json):
        warn_made_up(bool(decided.keep) and decided.settings.get("data") == "synthetic")


@app.command(cls=_Guarded)
@taking(o.Replay)
def apply(
    model: o.Source,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan of this model, as `plan` writes it.")],
    given: o.Replay,
) -> None:
    """Replay a plan on the model it was made for, or on that model cleaned: the same cut, verified.

    Only the cut, unless --recover names a repair.
    """
    with progress(given.quiet):
        from onnxprune import api

        out = place(model, given.output, ".pruned.onnx", given.force, plan_file)
        decided = api.read_plan(plan_file)
        result = api.apply_plan(model, decided, recover=given.recover, **given.inputs())
        _write(result, model, out, force=given.force, stamp=given.stamp)
    _report(result, out, given.as_json, given.quiet, used=(model, plan_file, given.data))


@app.command(cls=_Guarded)
def analyze(
    model: o.Source,
    redundancy: o.Redundancy = False,
    input_shape: o.InputShape = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Show layers, cost, the classes of filters that go together, and what is frozen and why.

    With --redundancy, instead: how similar the filters of each layer are; with --json, that as well.
    """
    with progress(quiet):
        from onnxprune import api
        from onnxprune.report import resemblance, text

        analysis = api.analyze(model, input_shapes=o.shapes(input_shape))
        found = api.redundancy(analysis) if redundancy else None
        view = api.overview(analysis, name=str(model))
    if as_json:
        show_json(view.as_dict() | ({} if found is None else {"redundancy": found.as_dict()}))
    elif found is not None:
        show(resemblance.redundancy(found, model))
    else:
        show(text.analysis(view))


@app.command(cls=_Guarded)
def explain(
    model: o.Source,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A node, a parameter or another tensor.")],
    input_shape: o.InputShape = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Show what goes with a node or tensor, and the path of ties that freezes what cannot go."""
    with progress(quiet):
        from onnxprune import api
        from onnxprune.report import text

        told = api.explain(model, name, input_shapes=o.shapes(input_shape))
    if as_json:
        show_json(told.as_dict())
    else:
        show(text.explanation(told))


@app.command(cls=_Guarded)
def clean(
    model: o.Source,
    output: o.Out = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the normalised original, nothing pruned: what plans refer to, and the fair baseline.

    Writes MODEL.clean.onnx unless -o names another file.
    """
    with progress(quiet):
        from onnxprune import api, files
        from onnxprune.report import text

        out = place(model, output, ".clean.onnx", force)
        cleaned, notes = api.cleaned(model)
        files.write_model(cleaned, out, source=model, force=force)
    if as_json:
        show_json({"model": str(model), "output": str(out), "digest": files.digest(cleaned), "notes": list(notes)})
    elif not quiet:
        show(text.cleaning(model, out, notes))


@app.command(cls=_Guarded)
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A model.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another model.")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Return 1 where they differ.")] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Show what changed between two models: widths, parameters, attributes, nodes, signature, metadata, size."""
    with progress(quiet):
        from onnxprune import api
        from onnxprune.report import text

        change = api.diff(before, after)
    if as_json:
        show_json({"before": str(before), "after": str(after), **change.as_dict()})
    else:
        show(text.difference(change, before, after))
    if exit_code and change:
        raise typer.Exit(int(Exit.TARGET))


for _command in (
    *(validating.validate, measuring.bench, searches.search, reporting.report, sparsify.sparsify),
    *(tuning.finetune, tuning.handoff, tuning.absorb),
):
    app.command(cls=_Guarded)(_command)


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _check_plan(model: Path, out: Path, plan_out: Path | None, force: bool) -> None:
    """All that can be known to be wrong with the file of the plan, before any work is done."""
    from onnxprune import files

    if plan_out is not None:
        files.check_output(plan_out, model, force)
        if os.path.realpath(out) == os.path.realpath(plan_out):
            raise UsageError(f"--save-plan names the output '{out}': give the plan a file of its own")


def _write(result: Result, model: Path, out: Path, *, force: bool, stamp: bool, plan_out: Path | None = None) -> None:
    """The model last: it is what a caller waits for, so the plan is there when it appears."""
    from onnxprune import files
    from onnxprune.plan import dumps

    if stamp:
        from onnxprune import provenance

        provenance.stamp(result.model, result.plan, files.digest(files.read_model(model)))
    new_plan = plan_out is not None and not plan_out.exists()
    if plan_out is not None:
        files.write_text(plan_out, dumps(result.plan), source=model, force=force)
    try:
        files.write_model(result.model, out, source=model, force=force)
    except BaseException:
        if plan_out is not None and new_plan:
            plan_out.unlink(missing_ok=True)  # all or nothing
        raise


def _report(
    result: Result,
    out: Path,
    as_json: bool,
    quiet: bool,
    tuned: Sequence[TuneReport] = (),
    used: Sequence[str | Path | None] = (),
    page: Path | None = None,
    steps: int = 1,
) -> None:
    """The cut, and what training did after it, or after each of several cuts."""
    report = result.report
    if as_json or page is not None:
        told = report.as_dict()
        if result.int8 or result.refused:
            told |= {"int8": result.int8 and result.int8.as_dict(), "refused": result.refused}
        told |= {"tuning": [r.as_dict() for r in tuned]} if tuned else {}
        told |= {"output": str(out)} | record.made(*used, out)
        record.write_page(told, page)
    if as_json:
        show_json(told)
    elif not quiet:
        from onnxprune.report import latency, text

        show(text.compression(report, out, trained=bool(tuned)))
        if result.int8:
            write("\n")
            show(latency.benchmark(result.int8))
        for step, each in enumerate(tuned, 1):
            tuning.tell(each, out if step == len(tuned) else "the next cut", as_json=False, quiet=False)
    warn_made_up(quiet and report.synthetic)
    for step, each in enumerate(tuned, 1):
        tuning.end(each, out, True, step, steps)
    if result.refused:
        raise TargetError(result.refused)


def main() -> None:
    """Run the command line and exit; see `errors.Exit` for the codes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    app(prog_name="onnxprune")
