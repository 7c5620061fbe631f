"""Results as JSON for pages, real ones and hostile ones, and a browser to open them in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from commands import run

FIXTURES = Path(__file__).parents[1] / "fixtures"
VGG, RESNET, CALIB, TEST = (
    str(FIXTURES / name) for name in ("vgg_legacy.onnx", "resnet_bn_dynamo.onnx", "digits_calib.npz", "digits_test.npz")
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "\"'><img src=x onerror=\"document.title='taken'\">",
    "</title></style></script><script>document.title = 'taken'</script>",
    "long/" * 2000,
    "שלום עולם \u202e exe.tac",
    "\ud800 lone, \x00 zero, \x1b[31m, \u2028",
    "{{ 7 * 7 }} {% include 'x' %}",
    "javascript:document.title='taken'",
)


def told(*args, code=0):
    """The JSON that a command prints."""
    result = run(*args, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def results(folder):
    """What every command prints, by name: with labels, without data, with a gate that is shut, with a drop."""
    small, bare = folder / "small.onnx", folder / "bare.onnx"
    fitted = ("--data", TEST, "--allocate", "global")
    return {
        "compress": told("compress", RESNET, "--flops", "0.5", *fitted, "-o", small),
        "no data": told("compress", VGG, "--flops", "0.5", "-o", folder / "nodata.onnx"),
        "bare": told("compress", VGG, "--flops", "0.9", "--recover", "none", "-o", bare),
        "validate": told("validate", VGG, bare, "--data", TEST, "--max-drop", "1", "--latency-seconds", "2", code=1),
        "search": told("search", VGG, "--flops", "0.5,0.8", "--recover", "none", "--val", TEST, "-o", folder / "curve"),
        "bench": told("bench", VGG, bare, "--seconds", "2", "--profile", "--no-memory"),
    }


def hostile(result):
    """The same result with hostile text in the place of every name."""
    made = json.loads(json.dumps(result))
    names = dict(zip((x["node"] for x in made["layers"]), HOSTILE * len(made["layers"]), strict=False))
    for x in (*made["layers"], *(made["recovery"] or {}).get("layers", ())):
        x["node"] = names[x["node"]]
        x["reason"] = x["op"] = HOSTILE[0]
    for group, text in zip(made["groups"], HOSTILE * len(made["groups"]), strict=False):
        group["parameter"] = text
    made |= {"model": HOSTILE[2], "output": HOSTILE[1], "notes": list(HOSTILE), "note": HOSTILE[0]}
    made["coupling"]["reasons"] = [{"positions": 1, "reason": text} for text in HOSTILE]
    made["settings"] = {text: text for text in HOSTILE}
    made["seconds"] = dict.fromkeys(HOSTILE, 1.0)
    made["run"] |= {"command": HOSTILE[0], "sha256": dict.fromkeys(HOSTILE, HOSTILE[0]), "version": HOSTILE[0]}
    return made


def large(result, count=1000, name="a/rather/long/name/of/a/layer/as/some/exporters/write/them/conv_"):
    """The same result for a network of many layers."""
    made = json.loads(json.dumps(result))
    layers, fits = made["layers"], made["recovery"]["layers"]
    made["layers"] = [dict(layers[i % len(layers)], node=f"{name}{i}") for i in range(count)]
    made["recovery"]["layers"] = [dict(fits[i % len(fits)], node=f"{name}{i}") for i in range(count)]
    groups = [dict(g, parameter=f"{name}{g['parameter']}") for g in made["groups"]]
    made["groups"] = [
        dict(groups[i % len(groups)], makers=sorted({i, (7 * i + 3) % count}), readers=list(range(i, count)))
        for i in range(count)
    ]
    return made


def opened(page, *, width=1100, script=""):
    """A page in the browser: the document when all scripts have run, and what the console said.

    script: runs last; the policy of the page, which would forbid it, is then left out.
    """
    if script:
        page = POLICY.sub("", page).replace("</body>", f"<script>{script}</script></body>")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_bytes(page.encode())
        command = [BROWSER, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={width},900", "--dump-dom"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)
