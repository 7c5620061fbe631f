"""The command line, through typer's runner."""

from __future__ import annotations

import errno
import json
import os
from hashlib import sha256
from pathlib import Path

import onnx
import pytest
from commands import done, run

import onnxprune
from onnxprune import files, options, pipeline, recovery, searching, settings
from onnxprune import plan as plans
from onnxprune.errors import VerificationError

FIXTURES = Path(__file__).parents[1] / "fixtures"
HALF = ("--flops", "0.5")
CUT = (*HALF, "--recover", "none")  # nothing but the cut, without calibration inputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a model, the same model cut off, and other files that are no use."""
    monkeypatch.chdir(tmp_path)
    content = (FIXTURES / "resnet_bn_legacy.onnx").read_bytes()
    Path("m.onnx").write_bytes(content)
    Path("cut.onnx").write_bytes(content[: len(content) // 2])
    Path("empty.onnx").write_bytes(b"")
    Path("text.onnx").write_text("hello")
    Path("there.onnx").write_bytes(b"precious")
    Path("link.onnx").symlink_to("m.onnx")
    Path("bad.json").write_text('{"version": 1}')
    Path("other.json").write_text(plans.dumps(onnxprune.make_plan(FIXTURES / "vgg_legacy.onnx", flops=0.5)))
    return tmp_path


def listing(folder):
    """Every file with its content."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ---- what works ---------------------------------------------------------------------------------------------------


def test_compress_writes_beside_the_input(folder):
    """Without -o the result is MODEL.pruned.onnx; it is what the library returns, and the input is not touched."""
    before = listing(folder)
    result = done("compress", "m.onnx", *CUT)
    after = listing(folder)
    written = after.pop("m.pruned.onnx")
    assert after == before
    model = onnxprune.compress("m.onnx", flops=0.5, recover="none").model
    assert written == model.SerializeToString(deterministic=True)
    assert result.stdout.startswith("m.onnx -> m.pruned.onnx\n")
    assert result.stderr == ""


def test_same_command_same_bytes(folder):
    """Two runs write the same bytes, and --stamp differs only by metadata."""
    for name, more in (("a", ()), ("b", ()), ("c", ("--stamp",))):
        done("compress", "m.onnx", *CUT, "-o", f"{name}.onnx", "--quiet", *more)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    plain, stamped = onnx.load("a.onnx"), onnx.load("c.onnx")
    entries = {p.key: p.value for p in stamped.metadata_props}
    assert entries.pop("task") == "digits"
    assert entries["onnxprune.source"] == files.digest(files.read_model("m.onnx"))
    assert set(entries) == {f"onnxprune.{k}" for k in ("version", "settings", "plan", "source")}
    stamped.ClearField("metadata_props")
    plain.ClearField("metadata_props")
    assert stamped == plain


def test_json_report_has_stable_keys(folder):
    """--json prints one object with the keys that programs rely on; what it states is what was written."""
    report = json.loads(done("compress", "m.onnx", *CUT, "--json").stdout)
    assert set(report) == {
        *("model", "output", "original", "compressed", "kept", "coupling", "verification", "layers", "notes", "note"),
        *("reachable", "settings", "seconds", "plan", "recovery", "tried", "groups", "run", "latency"),
    }
    assert report["recovery"] is None
    for name in ("original", "compressed", "kept"):
        assert set(report[name]) == {"macs", "params", "bytes"}
    assert set(report["coupling"]) == {"classes", "removed", "frozen", "inexact", "reasons"}
    assert set(report["verification"]) >= {"relative_error", "masked_differs", "checker"}
    assert set(report["layers"][0]) == {"node", "op", "inputs", "outputs", "macs", "frozen", "reason"}
    assert {"read", "normalize", "couple", "select", "cut", "verify"} <= set(report["seconds"])
    assert set(report["plan"]) == {"version", "model", "keep", "settings", "predicted", "frozen"}
    assert report["output"] == "m.pruned.onnx"
    assert 0.49 <= report["kept"]["macs"] <= 0.5
    assert report["compressed"]["bytes"] == Path("m.pruned.onnx").stat().st_size
    assert report["verification"]["masked_differs"] is True


def test_plan_and_apply_are_compress(folder):
    """`plan` then `apply` gives the bytes of `compress`, for the original and the cleaned model, as --save-plan."""
    done("compress", "m.onnx", *CUT, "-o", "direct.onnx", "--save-plan", "saved.json", "-q")
    done("plan", "m.onnx", *HALF, "-o", "p.json")
    done("clean", "m.onnx")
    done("apply", "m.onnx", "p.json", "-o", "replayed.onnx")
    done("apply", "m.clean.onnx", "p.json")
    assert Path("saved.json").read_text() == Path("p.json").read_text()
    direct = Path("direct.onnx").read_bytes()
    assert Path("replayed.onnx").read_bytes() == Path("m.clean.pruned.onnx").read_bytes() == direct


def test_plan_goes_to_stdout_without_a_file(folder):
    """Without -o, and with --json, the plan itself is printed."""
    before = listing(folder)
    printed = done("plan", "m.onnx", *HALF).stdout
    assert listing(folder) == before
    assert plans.loads(printed).keep
    assert done("plan", "m.onnx", *HALF, "--json", "-o", "p.json").stdout == printed == Path("p.json").read_text()


def test_options_reach_the_plan(folder):
    """Every selection option arrives; the plan records them."""
    numbers = ("--params", "0.6", "--min-keep", "0.3", "--align", "2", "--seed", "7")
    others = ("--method", "l1", "--inexact", "--keep", "*stem*", "--keep", "head*", "--input-shape", "input:3,1,8,8")
    plan = json.loads(done("plan", "m.onnx", *numbers, *others).stdout)
    assert plan["settings"] == {
        **{"params": 0.6, "min_keep": 0.3, "align": 2, "seed": 7},
        **{"method": "l1", "allocate": "global", "inexact": True, "keep": ["*stem*", "head*"]},
    }
    assert not [name for name in plan["keep"] if name.startswith("stem.")]
    widths = [len(axes["0"]) for name, axes in plan["keep"].items() if ".conv.weight" in name and "0" in axes]
    assert widths
    assert all(w % 2 == 0 for w in widths)


def test_every_criterion_is_in_the_help():
    """--help loads no criteria and no repairs, so their names are written down: they are the ones there are."""
    assert settings.methods() == options.METHODS
    assert options.REPAIRS == recovery.METHODS
    assert options.ALLOCATIONS == settings.ALLOCATIONS
    assert options.PROXIES == searching.PROXIES
    assert tuple(searching.OPTIMISERS) == options.OPTIMISERS


@pytest.mark.parametrize("data", [False, True], ids=["no data", "data"])
def test_defaults_in_the_help(data):
    """What --help says of the default method and allocation is what the library does."""
    for option, default in ((options.Method, settings.DEFAULT_METHOD), (options.Allocate, settings.DEFAULT_ALLOCATION)):
        told = f"Default: {default[True]} with --data, else {default[False]}."
        assert default[data] in told
        assert option.__metadata__[0].help.endswith(told)


def test_input_shape_counts(folder):
    """The MACs are those of the sizes given."""
    shapes = [f"input:{n},1,8,8" for n in (1, 2)]
    views = [json.loads(done("analyze", "m.onnx", "--input-shape", shape, "--json").stdout) for shape in shapes]
    one, two = (view["cost"]["macs"] for view in views)
    assert two == 2 * one > 0


def test_analyze(folder):
    """The table names layers, classes and reasons; the JSON form has them all, and nothing is written."""
    before = listing(folder)
    told = done("analyze", "m.onnx").stdout
    assert "/stem/stem.0/conv/Conv" in told
    assert "it is a result of the model" in told
    view = json.loads(done("analyze", "m.onnx", "--json").stdout)
    assert (view["model"], len(view["layers"]), view["coupling"]["frozen"]) == ("m.onnx", 13, 10)
    assert listing(folder) == before


def test_explain(folder):
    """A layer's filters with what goes along, as text and as JSON."""
    told = done("explain", "m.onnx", "/head/head.2/Gemm").stdout
    assert "10 frozen: graph output logits: it is a result of the model" in told
    axes = json.loads(done("explain", "m.onnx", "stage3.conv1.conv.weight", "--json").stdout)["axes"]
    assert {m["parameter"] for m in axes[0]["members"]} >= {"stage3.conv1.bn.weight", "stage3.conv2.conv.weight"}


def test_clean_is_the_library_s(folder):
    """`clean` writes what the library returns, says what it did, and finds nothing to do the second time."""
    told = json.loads(done("clean", "m.onnx", "-o", "c.onnx", "--json").stdout)
    assert Path("c.onnx").read_bytes() == onnxprune.clean("m.onnx").SerializeToString(deterministic=True)
    assert told["output"] == "c.onnx"
    assert told["digest"] == sha256(Path("c.onnx").read_bytes()).hexdigest()
    assert told["digest"] == onnxprune.make_plan("m.onnx", flops=0.5).model
    assert told["notes"]
    assert "nothing to clean" in done("clean", "c.onnx").stdout
    assert Path("c.clean.onnx").read_bytes() == Path("c.onnx").read_bytes()


def test_diff(folder):
    """`diff` is a report: 0 whether or not models differ, and 1 for a difference only where that was asked for."""
    done("compress", "m.onnx", *CUT, "-q")
    assert "[16, 16, 3, 3]" in done("diff", "m.onnx", "m.pruned.onnx").stdout
    assert json.loads(done("diff", "m.onnx", "m.pruned.onnx", "--json").stdout)["differs"] is True
    assert run("diff", "m.onnx", "m.pruned.onnx", "--exit-code").exit_code == 1
    assert "do not differ" in done("diff", "m.onnx", "link.onnx", "--exit-code").stdout


def test_force_replaces_and_nothing_else(folder):
    """--force replaces the output named and leaves every other file alone."""
    before = listing(folder)
    done("compress", "m.onnx", *CUT, "-o", "there.onnx", "--force", "-q")
    after = listing(folder)
    assert onnx.load_from_string(after.pop("there.onnx")).graph.node
    before.pop("there.onnx")
    assert after == before


def test_quiet_prints_nothing(folder):
    """--quiet writes the file and prints nothing at all; --json still prints its object."""
    for command in (("compress", "m.onnx", *CUT), ("clean", "m.onnx"), ("plan", "m.onnx", *HALF, "-o", "p.json")):
        result = done(*command, "--quiet")
        assert (result.stdout, result.stderr) == ("", "")
    assert json.loads(done("apply", "m.onnx", "p.json", "-o", "a.onnx", "-q", "--json").stdout)["output"] == "a.onnx"


def test_best_effort_reaches_what_it_can(folder):
    """With --best-effort a target out of reach is a note, not a failure."""
    result = done("compress", "m.onnx", "--flops", "0.01", "--recover", "none", "--best-effort")
    assert "Note: " in result.stdout
    assert Path("m.pruned.onnx").exists()


def test_version():
    """--version prints name and version."""
    assert done("--version").stdout == f"onnxprune {onnxprune.__version__}\n"


# ---- what must fail -----------------------------------------------------------------------------------------------

REFUSED = {
    "target out of reach": (("compress", "m.onnx", "--flops", "0.001", "--recover", "none"), 1, "cannot be reached"),
    "plan out of reach": (("plan", "m.onnx", "--flops", "0.001", "-o", "p.json"), 1, "cannot be reached"),
    "no command": (("prune", "m.onnx"), 2, "No such command"),
    "no model": (("compress",), 2, "Missing argument"),
    "not a number": (("compress", "m.onnx", "--flops", "half"), 2, "--flops"),
    "negative seed": (("compress", "m.onnx", *CUT, "--seed", "-1"), 2, "--seed"),
    "no target": (("compress", "m.onnx"), 2, "exactly one"),
    "two targets": (("compress", "m.onnx", *CUT, "--size", "0.5"), 2, "exactly one"),
    "fraction too large": (("compress", "m.onnx", "--flops", "1.5", "--recover", "none"), 2, "at most 1"),
    "fraction 0": (("compress", "m.onnx", "--flops", "0", "--recover", "none"), 2, "above 0"),
    "fraction nan": (("compress", "m.onnx", "--flops", "nan"), 2, "above 0"),
    "unknown method": (("compress", "m.onnx", *CUT, "--method", "group_nrom"), 2, "group_norm"),
    "align word": (("compress", "m.onnx", *CUT, "--align", "eight"), 2, "--align 'eight'"),
    "align 0": (("compress", "m.onnx", *CUT, "--align", "0"), 2, "align"),
    "min-keep": (("compress", "m.onnx", *CUT, "--min-keep", "2"), 2, "min-keep"),
    "keep names nothing": (("compress", "m.onnx", *CUT, "--keep", "nope*"), 2, "'nope*'"),
    "input shape": (("analyze", "m.onnx", "--input-shape", "input=1,1,8,8"), 2, "--input-shape"),
    "input shape twice": (("analyze", "m.onnx", *("--input-shape", "input:1,1,8,8") * 2), 2, "more than once"),
    "input shape of nothing": (("analyze", "m.onnx", "--input-shape", "data:1,1,8,8"), 2, "no such input"),
    "unknown node": (("explain", "m.onnx", "/stage3/conv2/Conv"), 2, "/stage3/conv2/conv/Conv"),
    "plan onto the model": (("compress", "m.onnx", *CUT, "-o", "a.onnx", "--save-plan", "a.onnx"), 2, "--save-plan"),
    "empty": (("compress", "empty.onnx", *CUT), 3, "'empty.onnx' is empty"),
    "not onnx": (("analyze", "text.onnx"), 3, "not an ONNX model"),
    "cut off": (("clean", "cut.onnx"), 3, "cut off"),
    "diff of no model": (("diff", "m.onnx", "text.onnx"), 3, "not an ONNX model"),
    "plan of another model": (("apply", "m.onnx", "other.json"), 3, "another model"),
    "malformed plan": (("apply", "m.onnx", "bad.json"), 3, "malformed plan"),
    "model as plan": (("apply", "m.onnx", "m.onnx", "-o", "a.onnx"), 3, "'m.onnx' is not a plan"),
    "missing model": (("compress", "nope.onnx", *CUT), 4, "no file 'nope.onnx'"),
    "missing plan": (("apply", "m.onnx", "nope.json"), 4, "no file 'nope.json'"),
    "output is input": (("compress", "m.onnx", *CUT, "-o", "m.onnx", "--force"), 4, "is the input"),
    "output links to input": (("compress", "m.onnx", *CUT, "-o", "link.onnx", "--force"), 4, "is the input"),
    "input is a link to output": (("clean", "link.onnx", "-o", "m.onnx", "--force"), 4, "is the input"),
    "output is plan": (("apply", "m.onnx", "other.json", "-o", "other.json", "--force"), 4, "is the input"),
    "plan is input": (("plan", "m.onnx", *HALF, "-o", "m.onnx", "--force"), 4, "is the input"),
    "saved plan is input": (("compress", "m.onnx", *CUT, "--save-plan", "m.onnx", "--force"), 4, "is the input"),
    "output exists": (("compress", "m.onnx", *CUT, "-o", "there.onnx"), 4, "--force"),
    "apply's output exists": (("apply", "m.onnx", "other.json", "-o", "there.onnx"), 4, "--force"),
    "clean's output exists": (("clean", "m.onnx", "-o", "there.onnx"), 4, "--force"),
    "plan exists": (("plan", "m.onnx", *HALF, "-o", "bad.json"), 4, "--force"),
    "saved plan exists": (("compress", "m.onnx", *CUT, "--save-plan", "bad.json"), 4, "--force"),
    "no folder": (("compress", "m.onnx", *CUT, "-o", "no/such.onnx"), 4, "no folder"),
    "output is a folder": (("compress", "m.onnx", *CUT, "-o", ".", "--force"), 4, "cannot write '.'"),
}


@pytest.mark.parametrize(("args", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(folder, args, code, message):
    """Bad input gets its exit code and a message on stderr; stdout is empty, and no file comes, goes or changes."""
    before = listing(folder)
    result = run(*args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert listing(folder) == before


@pytest.mark.parametrize("command", ["compress", "clean", "apply"])
def test_output_is_checked_before_any_work(folder, command, monkeypatch):
    """An output that cannot be written is refused before the model is read."""
    monkeypatch.setattr(files, "read_model", lambda *_: pytest.fail("the model was read"))
    args = {"compress": CUT, "clean": (), "apply": ("other.json",)}[command]
    assert run(command, "m.onnx", *args, "-o", "there.onnx").exit_code == 4


def failing(error):
    """A function that raises."""

    def fail(*_args, **_options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VerificationError("the rule of Conv is wrong"), 5),
        (RuntimeError("oops"), 5),
        (MemoryError(), 4),
        (KeyboardInterrupt(), 130),
    ],
    ids=["verification", "bug", "memory", "interrupt"],
)
def test_failure_while_verifying_leaves_nothing(folder, monkeypatch, error, code):
    """Whatever goes wrong before the file is written leaves no file."""
    before = listing(folder)
    monkeypatch.setattr(pipeline, "verify", failing(error))
    result = run("compress", "m.onnx", *CUT, "--save-plan", "p.json", "--json")
    assert (result.exit_code, result.stdout) == (code, "")
    assert listing(folder) == before


def test_failure_while_writing_leaves_nothing(folder, monkeypatch):
    """A disk that fills up with the model, after the plan was written, leaves neither."""
    before, sync, calls = listing(folder), os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    result = run("compress", "m.onnx", *CUT, "--save-plan", "p.json")
    assert (result.exit_code, len(calls)) == (4, 2)
    assert "No space left on device" in result.stderr
    assert listing(folder) == before
