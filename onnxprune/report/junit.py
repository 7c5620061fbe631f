"""JUnit XML of a validation, as CI systems read it: one suite, one case per goal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from xml.etree import ElementTree

from onnxprune.report.validation import bound, told
from onnxprune.validation.gate import Goal
from onnxprune.validation.result import Validation

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
_CLASS = "onnxprune.validate"


def judged(v: Validation, *, time: datetime, host: str) -> str:
    """The goals; what is in doubt fails, or is skipped where doubt may pass.

    time: when it was measured, without a zone; host: where.
    """
    about = {"original": v.original, "candidate": v.candidate, "data": v.data or ""}
    cases = [_case(goal, v.doubt) for goal in v.goals]
    out = "\n".join(f"{g.verdict}: {told(g)}" for g in v.goals)
    return _document(cases, about, out, seconds=sum(v.seconds.values()), time=time, host=host)


def stopped(error: Exception, about: Mapping[str, str], *, time: datetime, host: str) -> str:
    """One case, in error: what stopped the command before there was a verdict.

    about: what was compared, as properties; time, host: as above.
    """
    case = _element("testcase", {"name": "validate", "classname": _CLASS, "time": "0"})
    told = {"message": str(error), "type": type(error).__name__}
    case.append(_element("error", told, str(error)))
    return _document([case], about, "", seconds=0.0, time=time, host=host)


def _case(goal: Goal, doubt: str) -> ElementTree.Element:
    case = _element("testcase", {"name": bound(goal), "classname": _CLASS, "time": "0"})
    if goal.verdict == "inconclusive" and doubt == "pass":
        case.append(_element("skipped", {"message": f"inconclusive: {told(goal)}"}))
    elif goal.verdict != "pass":
        case.append(_element("failure", {"message": told(goal), "type": goal.verdict}, told(goal)))
    return case


def _document(
    cases: Iterable[ElementTree.Element],
    about: Mapping[str, str],
    out: str,
    *,
    seconds: float,
    time: datetime,
    host: str,
) -> str:
    cases = list(cases)
    results = [result.tag for case in cases for result in case]
    counts = {
        "tests": len(cases),
        "failures": results.count("failure"),
        "errors": results.count("error"),
        "skipped": results.count("skipped"),
        "time": f"{seconds:.3f}",
    }
    stamp = {"timestamp": time.isoformat(timespec="seconds"), "hostname": host, "id": 0, "package": "onnxprune"}
    suite = _element("testsuite", {"name": "onnxprune validate", **counts, **stamp})
    properties = _element("properties", {})
    properties.extend(_element("property", {"name": name, "value": value}) for name, value in about.items())
    suite.extend([properties, *cases, _element("system-out", {}, out), _element("system-err", {})])
    root = _element("testsuites", {})
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _element(tag: str, attributes: Mapping[str, object], text: str = "") -> ElementTree.Element:
    element = ElementTree.Element(tag, {name: _clean(str(value)) for name, value in attributes.items()})
    element.text = _clean(text) or None
    return element


def _clean(text: str) -> str:
    """Names may hold characters that XML cannot."""
    return _FORBIDDEN.sub("?", text)
