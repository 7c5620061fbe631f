"""A search over methods and targets: what it finds, in parallel, on a cluster, and taken up again."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import done, run
from rich.console import Console

import onnxprune
from onnxprune import files, frontier, recovery
from onnxprune.criteria.activations import RefitErrors
from onnxprune.errors import Exit, FileError, PlanError, ResourceError, TargetError, UsageError
from onnxprune.frontier import SearchOptions
from onnxprune.plan import as_json
from onnxprune.points import AGREEMENT, Point, marked, measure_of, of_metric
from onnxprune.report import search as report

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL, CALIB, TEST = (str(FIXTURES / n) for n in ("resnet_bn_legacy.onnx", "digits_calib.npz", "digits_test.npz"))
OPTIONS = {"data": CALIB, "val": TEST, "calibration_size": 64, "recover": "least-squares"}
TWO = {"flops": [0.3, 0.6], "methods": ["cluster", "diversity"]}


def told(found):
    """What must not depend on how candidates are run."""
    return [(p.name, p.kept, p.agreement, p.metric, p.best, p.failed, p.plan) for p in found.points]


@pytest.fixture(scope="module")
def alone():
    """The search in this process."""
    return onnxprune.search(MODEL, **TWO, **OPTIONS)


def point(macs, metric, name="a"):
    """A candidate with these numbers."""
    return Point(name, macs, {"macs": macs}, None, None, metric, None, 0.0, None)


def test_dominance():
    """A candidate is best unless another one keeps no more and is worth no less; of equal ones the first is."""
    points = [point(0.2, 0.5), point(0.3, 0.5), point(0.3, 0.8), point(0.5, 0.7), point(0.3, 0.8, "b"), point(0.9, 0.9)]
    accuracy = of_metric("accuracy", higher=True, rate=True)
    assert [p.best for p in marked(points, accuracy)] == [True, False, True, False, False, True]
    loss = of_metric("log_loss", higher=False, rate=False)
    assert [p.best for p in marked(points, loss)] == [True, False, False, False, False, False]


def test_points_tell_what_a_compression_gives(alone):
    """A point's plan, costs and accuracy are those of `compress` and `validate` with the same options."""
    found = alone.points[1]
    assert (found.method, found.flops) == ("cluster", 0.6)
    options = {k: v for k, v in OPTIONS.items() if k != "val"}
    result = onnxprune.compress(MODEL, flops=0.6, method="cluster", **options)
    checked = onnxprune.validate(MODEL, result.model, data=TEST)
    assert found.metric == checked.metric.candidate
    assert alone.original == checked.metric.original
    assert found.kept["macs"] == result.report.compressed.macs / result.report.original.macs
    assert found.plan["keep"] == {n: {str(a): i for a, i in x.items()} for n, x in result.plan.keep.items()}
    assert (alone.measure.key, alone.measure.name) == ("metric", "accuracy")


def test_agreement_without_labels():
    """Without --val, candidates are compared by the original's answers on held-out inputs; without scores, by error."""
    found = onnxprune.search(MODEL, flops=[0.5], methods=["cluster"], data=CALIB, calibration_size=64)
    assert found.measure == AGREEMENT
    assert 0 < found.points[0].agreement <= 1
    assert found.original is None


def test_a_metric_where_less_is_better(alone):
    """Candidates are compared by the metric that is named, its direction included."""
    found = onnxprune.search(MODEL, **TWO, **OPTIONS, metric="log_loss")
    assert (found.measure.name, found.measure.higher, found.measure.rate) == ("log_loss", False, False)
    assert measure_of(found.as_dict()) == found.measure
    losses = [p.metric for p in found.points]
    options = {k: v for k, v in OPTIONS.items() if k != "val"}
    model = onnxprune.compress(MODEL, flops=0.6, method="cluster", **options).model
    assert losses[1] == onnxprune.validate(MODEL, model, data=TEST, metric="log_loss").metric.candidate
    assert losses != [p.metric for p in alone.points]
    small, large = ([p for p in found.points if p.flops == f] for f in TWO["flops"])
    assert [p.best for p in small] == [p.metric == min(x.metric for x in small) for p in small]
    assert found.original < min(p.metric for p in large)


def test_a_metric_needs_labels():
    """A metric without --val, and one that is not known, are told before any work."""
    with pytest.raises(UsageError, match="give --val"):
        onnxprune.search("none.onnx", flops=0.5, metric="f1", data=CALIB)
    with pytest.raises(UsageError, match="--metric 'log_los' is not known; did you mean 'log_loss'"):
        onnxprune.search("none.onnx", flops=0.5, metric="log_los", val=TEST)


def test_a_journal_needs_a_metric_with_a_name(tmp_path):
    """A function has nothing by which a journal could be known again."""
    with pytest.raises(UsageError, match="'module:function'"):
        onnxprune.search(MODEL, flops=0.5, metric=lambda *_: 0.0, val=TEST, journal=tmp_path / "j.jsonl")


@pytest.mark.parametrize("jobs", [2, 3])
def test_processes_find_the_same(alone, jobs):
    """The result is that of one process, however many run."""
    assert told(onnxprune.search(MODEL, **TWO, **OPTIONS, jobs=jobs)) == told(alone)


@pytest.mark.filterwarnings("default")  # of the cluster's own shutdown
def test_a_cluster_finds_the_same(alone):
    """Two worker processes of a dask cluster give the result of one process."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        found = onnxprune.search(MODEL, **TWO, **OPTIONS, jobs=2, backend="dask", scheduler=address)
    assert told(found) == told(alone)


@pytest.mark.filterwarnings("default")  # of ray's own
@pytest.mark.parametrize("running", [False, True], ids=["its own", "a running one"])
def test_ray_finds_the_same(alone, running):
    """Two workers of ray give the result of one process; ray is shut down again unless it was running before."""
    ray = pytest.importorskip("ray")
    if running:
        ray.init(num_cpus=2, include_dashboard=False)
    assert told(onnxprune.search(MODEL, **TWO, **OPTIONS, jobs=2, backend="ray")) == told(alone)
    assert ray.is_initialized() == running
    ray.shutdown()


def test_a_target_out_of_reach_is_one_point(alone):
    """A candidate that cannot be made says why; the others are there. Where all fail, the search does."""
    found = onnxprune.search(MODEL, flops=[0.001, 0.6], methods=["cluster"], **OPTIONS)
    assert "0.001" in found.points[0].failed
    assert not found.points[0].best
    assert found.points[1].metric == alone.points[1].metric
    with pytest.raises(TargetError, match="no candidate succeeded"):
        onnxprune.search(MODEL, flops=0.001, methods=["cluster"], **OPTIONS)


def test_options_of_compress():
    """Those of `compress` count for every candidate, those of an allocation for the candidates that have it."""
    many = frontier.SearchOptions(
        flops=[0.5], methods=["hybrid", "l2"], max_rate=["0.7"], proxy="none", min_keep=0.3, inexact=True, allocate=None
    )
    hybrid, plain = (many.of(c) for c in many.candidates())
    assert (hybrid.proxy, plain.proxy) == ("none", None)
    assert all((x.max_rate, x.min_keep, x.inexact) == (["0.7"], 0.3, True) for x in (hybrid, plain))
    with pytest.raises(TargetError, match="a smaller --min-keep"):
        onnxprune.search(MODEL, flops=[0.5], methods=["l2"], **OPTIONS, min_keep=0.6)
    with pytest.raises(UsageError, match="--budget belongs to --allocate evolve, which no candidate has"):
        onnxprune.search(MODEL, flops=[0.5], methods=["hybrid", "l2"], **OPTIONS, budget=9)


# ---- taking up again -----------------------------------------------------------------------------------------------


def test_taken_up_again_after_a_kill(alone, tmp_path, monkeypatch):
    """What was finished before a kill is in the journal and is not done again; the result is the uninterrupted one."""
    journal = tmp_path / "journal.jsonl"
    script = (
        "import os, signal, onnxprune\n"
        "from onnxprune import frontier\n"
        "real, count = frontier.evaluate, []\n"
        "def evaluate(*args):\n"
        "    count.append(args)\n"
        "    return real(*args) if len(count) < 3 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "frontier.evaluate = evaluate\n"
        f"onnxprune.search({MODEL!r}, journal={str(journal)!r}, **{TWO | OPTIONS!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert len(journal.read_text().splitlines()) == 3
    calls, real = [], frontier.evaluate
    monkeypatch.setattr(frontier, "evaluate", lambda *args: calls.append(args[2].name) or real(*args))
    assert told(onnxprune.search(MODEL, **TWO, **OPTIONS, journal=journal)) == told(alone)
    assert calls == ["diversity_0.3", "diversity_0.6"]


def test_other_contents_are_other_data(tmp_path):
    """A file whose content has changed, and other arrays, are not taken for what the journal was made with."""
    data, journal = tmp_path / "d.npz", tmp_path / "journal.jsonl"
    arrays = dict(np.load(CALIB))
    options = {"flops": 0.6, "methods": "cluster", "calibration_size": 64, "recover": "least-squares"}
    np.savez(data, **arrays)
    onnxprune.search(MODEL, **options, data=data, journal=journal)
    np.savez(data, **{k: v[::-1][:100] for k, v in arrays.items()})
    with pytest.raises(PlanError, match="of other options"):
        onnxprune.search(MODEL, **options, data=data, journal=journal)
    first, second = ({"input": np.roll(arrays["input"], shift, 0)} for shift in (0, 1))
    onnxprune.search(MODEL, **options, data=first, journal=tmp_path / "other.jsonl")
    with pytest.raises(PlanError, match="of other options"):
        onnxprune.search(MODEL, **options, data=second, journal=tmp_path / "other.jsonl")
    with pytest.raises(UsageError, match="data that can be told from other data"):
        onnxprune.search(MODEL, **options, data=lambda: iter([arrays["input"]]), journal=tmp_path / "third.jsonl")


def test_one_measure_for_all():
    """Candidates are compared by a number that all of them have, the one that is not cut included."""
    found = onnxprune.search(MODEL, flops=[0.5, 1.0], methods="cluster", data=TEST, recover="least-squares")
    assert found.measure == AGREEMENT
    assert [AGREEMENT.worth(p) for p in found.points] == [found.points[0].agreement, 1.0]
    assert found.original is not None  # an accuracy, and no share of equal answers
    console = Console(file=StringIO(), width=80)
    console.print(report.frontier(found, Path("m.onnx"), Path("curve"), ""))
    assert "the original:" not in console.file.getvalue()


def test_an_optimiser_goes_on(tmp_path, monkeypatch):
    """Ctrl-C while an optimiser chooses filters: what it tried is in the journal and is not tried again, and the result
    is the uninterrupted one; of a finished candidate the tries are not kept.
    """
    given = OPTIONS | {"flops": [0.5], "methods": ["evolve"]}
    whole, calls, real, journal = onnxprune.search(MODEL, **given), [], RefitErrors.__call__, tmp_path / "j.jsonl"

    def counted(self, lost):
        calls.append(lost)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return real(self, lost)

    monkeypatch.setattr(RefitErrors, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        onnxprune.search(MODEL, **given, journal=journal)
    line = json.loads(journal.read_text().splitlines()[1])
    known = sum(map(len, line["values"].values()))
    assert known > 30
    calls.clear()
    calls += [None] * 50
    assert told(onnxprune.search(MODEL, **given, journal=journal)) == told(whole)
    left = len(calls) - 50
    calls.clear()
    calls += [None] * 50
    onnxprune.search(MODEL, **given)
    assert left < len(calls) - 50 - 30
    assert "values" not in journal.read_text()


def test_one_table_for_all_targets(monkeypatch):
    """What a greedy choice starts from does not depend on the target: it is measured once per method, and the plans are
    those of `compress`.
    """
    calls, real = [], recovery.curves
    monkeypatch.setattr(recovery, "curves", lambda *args, **more: calls.append(args[1]) or real(*args, **more))
    given = {"data": CALIB, "calibration_size": 64, "recover": "none"}
    found = onnxprune.search(MODEL, flops=[0.4, 0.7], methods=["l2", "l1"], **given, val=TEST)
    assert [bool(kept.all()) for kept in calls] == [
        True,
        False,
        False,
    ] * 2  # a target's second round starts from its own
    for point in found.points:
        plan = onnxprune.make_plan(MODEL, flops=point.flops, method=point.method, data=CALIB, calibration_size=64)
        assert point.plan == as_json(plan)


def test_a_bug_costs_one_candidate(monkeypatch):
    """What nobody expected in one candidate is told there; the others are there."""
    real = frontier.compressed

    def compressed(model, options, known):
        if options.flops == 0.3:
            raise ZeroDivisionError("odd")
        return real(model, options, known)

    monkeypatch.setattr(frontier, "compressed", compressed)
    found = onnxprune.search(MODEL, **TWO | {"methods": "cluster"}, **OPTIONS)
    assert "a bug (ZeroDivisionError: odd)" in found.points[0].failed
    assert found.points[1].best


@pytest.mark.parametrize(
    ("problem", "error", "message"),
    [(MemoryError(), ResourceError, "not enough memory"), (OSError("disk full"), FileError, "disk full")],
)
def test_a_machine_without_room_is_no_bug(monkeypatch, problem, error, message):
    """Memory or disk space that one candidate lacks is told as such."""

    def compressed(*_):
        raise problem

    monkeypatch.setattr(frontier, "compressed", compressed)
    with pytest.raises(error, match=f"no candidate succeeded; the first: .*{message}"):
        onnxprune.search(MODEL, flops=0.5, methods="cluster", **OPTIONS)


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"journal": 2, "search": "x"}\n{"name": "a", "wild": 1}'])
def test_other_files_are_no_journals(tmp_path, text):
    """A file of something else is refused before any work, and stays as it is."""
    journal = tmp_path / "journal.jsonl"
    journal.write_text(text)
    with pytest.raises(PlanError, match="is not a journal"):
        onnxprune.search(MODEL, **TWO, **OPTIONS, journal=journal)
    assert journal.read_text() == text


def test_a_journal_of_other_options_is_refused(tmp_path):
    """Candidates of another seed or model are not mixed in."""
    journal = tmp_path / "journal.jsonl"
    onnxprune.search(MODEL, flops=[0.6], methods=["cluster"], **OPTIONS, journal=journal)
    for model, more in ((MODEL, {"seed": 1}), (FIXTURES / "vgg_legacy.onnx", {})):
        with pytest.raises(PlanError, match="another model or of other options"):
            onnxprune.search(model, flops=[0.6], methods=["cluster"], **OPTIONS, **more, journal=journal)


@pytest.mark.filterwarnings("default")  # of ray's own
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
@pytest.mark.parametrize(("deaths", "fate"), [(1, "made"), (99, "died twice")])
def test_a_dead_worker(tmp_path, monkeypatch, deaths, fate, backend):
    """A candidate whose worker dies is tried again, then reported; what others finish is not lost."""
    if backend == "dask":  # which tries again by itself
        scheduler = pytest.importorskip("distributed").config["distributed"]["scheduler"]
        monkeypatch.setitem(scheduler, "allowed-failures", 0)
    elif backend == "ray":
        pytest.importorskip("ray")
    (tmp_path / f"killing{deaths}.py").write_text(
        "import os, pathlib, numpy as np\n"
        f"place, test = pathlib.Path({str(tmp_path)!r}), np.load({TEST!r})\n"
        "def val():\n"
        "    dead = len(list(place.glob('dead*')))\n"
        f"    if dead < {deaths}:\n"
        "        (place / f'dead{dead}').touch()\n"
        "        os._exit(1)\n"
        "    yield test['input'], test['labels']\n"
    )
    monkeypatch.chdir(tmp_path)
    options = OPTIONS | {"val": f"killing{deaths}:val", "backend": backend}
    if fate == "made":
        found = onnxprune.search(MODEL, flops=[0.5, 0.6], methods=["cluster"], **options, jobs=2)
        assert not any(p.failed for p in found.points)
    else:
        with pytest.raises(TargetError, match="its worker process died twice"):
            onnxprune.search(MODEL, flops=[0.6], methods=["cluster"], **options, jobs=2)


def refused(code, *args):
    """A command that must fail in this way; its result."""
    result = run(*args)
    assert result.exit_code == code, result.output
    return result


# ---- the command ---------------------------------------------------------------------------------------------------


ARGUMENTS = ("search", MODEL, "--data", CALIB, "--recover", "least-squares", "--calibration-size", "64")


def test_the_folder(tmp_path, monkeypatch):
    """The command writes the candidates, the curve and plans that `apply` takes; an earlier search is not lost."""
    monkeypatch.chdir(tmp_path)
    first = done(*ARGUMENTS, "--val", TEST, "--flops", "0.3,0.6", "--method", "cluster", "-o", "out", "--json")
    found = json.loads(first.stdout)
    assert found == json.loads(Path("out/search.json").read_text()) | {"output": "out"}
    assert {p.name for p in Path("out").iterdir()} == {
        *("search.json", "curve.svg", "journal.jsonl", "cluster_0.3.plan.json", "cluster_0.6.plan.json")
    }
    done("apply", MODEL, "out/cluster_0.6.plan.json", "-o", "small.onnx", "-q")
    kept = onnxprune.analyze(onnx.load("small.onnx"))
    assert sum(x.macs.count(np.ones(kept.classes + 1, bool)) for x in kept.layers) > 0
    svg = Path("out/curve.svg").read_text()
    assert len(re.findall("<circle", svg)) == 2
    assert "cluster" in svg
    again = (*ARGUMENTS, "--val", TEST, "--flops", "0.3", "--method", "cluster", "-o", "out")
    assert "has an earlier search" in refused(Exit.RESOURCE, *again).stderr
    monkeypatch.setenv("COLUMNS", "1000")
    [command] = re.findall(r"Next: `onnxprune (.*)` makes that one", done(*again, "--resume").stdout)
    done(*shlex.split(command), "-o", "next.onnx")
    options = {"data": CALIB, "recover": "least-squares", "calibration_size": 64}
    wanted = onnxprune.compress(MODEL, flops=0.3, method="cluster", **options).model
    assert onnx.load("next.onnx") == wanted, "what comes next makes the network that was measured"
    refused(Exit.RESOURCE, *again[:-4], "-o", "out", "--force", "--val", "missing.npz")
    assert len(Path("out/journal.jsonl").read_text().splitlines()) == 3  # nothing was lost
    Path("out/mine.plan.json").write_text("precious")
    done(*again, "--force")
    assert sorted(p.name for p in Path("out").glob("*.plan.json")) == ["cluster_0.3.plan.json", "mine.plan.json"]


def test_files_of_others_stay(tmp_path, monkeypatch):
    """A folder that has files of these names is not written to; without a result, none is made."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/search.json").write_text("precious")
    arguments = (*ARGUMENTS, "--flops", "0.5", "--method", "cluster")
    refused(Exit.RESOURCE, *arguments, "-o", "mine")
    assert Path("mine/search.json").read_text() == "precious"
    refused(Exit.TARGET, *ARGUMENTS, "--flops", "0.001", "--method", "cluster", "-o", "out")
    refused(Exit.USAGE, *arguments, "--keep", "nothing*", "-o", "out")
    refused(Exit.RESOURCE, "search", MODEL, "--flops", "0.5", "--data", "missing.npz", "-o", "out")
    assert not Path("out").exists()
    assert "there is no folder" in refused(Exit.RESOURCE, *arguments, "-o", "no/out").stderr


def test_one_search_at_a_time(tmp_path, monkeypatch):
    """A second search into a folder in use says so at once, and changes nothing; that of a dead one can be resumed."""
    monkeypatch.chdir(tmp_path)
    arguments = (*ARGUMENTS, "--flops", "0.6", "--method", "cluster", "-o", "out")
    Path("out").mkdir()
    code = "import os, pathlib, onnxprune.files as f\nlock = f.locked(pathlib.Path('out/journal.jsonl.lock'), '')\n"
    subprocess.run([sys.executable, "-c", f"{code}lock.__enter__()\nos._exit(1)"], check=False)
    left = [p.name for p in Path("out").iterdir()]
    with files.locked(Path("out/journal.jsonl.lock"), ""):
        for more in ((), ("--resume",), ("--force",)):
            told = refused(Exit.RESOURCE, *arguments, *more).stderr
            assert "the folder 'out' is in use by another run" in " ".join(told.split())
        assert [p.name for p in Path("out").iterdir()] == left == ["journal.jsonl.lock"]
    done(*arguments, "--resume")
    assert not list(Path("out").glob("*.lock"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--flops", "0.5,x"), "fractions with commas"),
        (("--flops", ""), "give the fractions"),
        (("--flops", "1.5"), "1.5"),
        (("--flops", "0.5", "--method", "wild"), "'wild' is not known"),
        (("--flops", "0.5", "--jobs", "0"), "--jobs 0"),
        (("--flops", "0.5", "--backend", "slurm"), "slurm"),
        (("--flops", "0.5", "--scheduler", "a:1"), "name its --backend"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, arguments, message):
    """Wrong options are told before any work."""
    monkeypatch.chdir(tmp_path)
    assert message in refused(Exit.USAGE, *ARGUMENTS, *arguments, "-o", "out").stderr
    assert not list(tmp_path.glob("out/*.json"))


def test_nothing_to_compare_by():
    """Without recovery nothing is measured: --val is wanted."""
    with pytest.raises(UsageError, match="give --val"):
        onnxprune.search(MODEL, flops=[0.5], recover="none")


def test_data_that_no_candidate_looks_at():
    """Data, and how to read them, are a usage error where no candidate uses them."""
    blind = {"flops": [0.5], "methods": "l1", "allocate": "global", "recover": "none", "val": "v.npz"}
    with pytest.raises(UsageError, match="--data would be ignored, since nothing here looks at inputs"):
        SearchOptions(**blind, data="d.npz").check()
    with pytest.raises(UsageError, match="--calibration-size would be ignored"):
        SearchOptions(**blind, calibration_size=64).check()
    SearchOptions(**(blind | {"methods": ["l1", "activation"]}), data="d.npz").check()
    SearchOptions(**(blind | {"recover": "auto"}), data="d.npz").check()
