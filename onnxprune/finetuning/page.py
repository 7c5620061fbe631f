"""The README of a bundle: one page."""

from __future__ import annotations

_PAGE = """# A pruned model, ready for training

| file | what it is |
|--|--|
| `pruned.onnx` | the model to train |
{teacher}{plan}| `weights.safetensors` | its weights, by the names of the initializers in the graph |
| `map.json` | of each: `shape`, `dtype`, whether a layer reads it as a weight (`trained`), and the indices of the \
original that were `kept`, by axis |
| `train.py` | a training loop for torch to start from |

## With torch

    pip install 'onnxprune[finetune]'
    python train.py train.npz --epochs 3          # arrays by input name{labels}

The script makes a torch module of `pruned.onnx`, whose parameters are the initializers, trains it{towards}, and writes
`weights.safetensors` anew. It is short: change the loss, the data, the optimiser.

## With any other training code

Train what you like, as long as names, shapes and types stay. Write the weights as safetensors under the same names;
those left out stay as they are. BatchNormalization is in inference form: keep its statistics, or write new ones.

## Back into the graph

    onnxprune absorb pruned.onnx weights.safetensors -o tuned.onnx

This checks names, shapes, types and values, and says what changed. Graph, inputs, outputs and operator set are those of
`pruned.onnx`; nothing is exported again. Measure the accuracy of `tuned.onnx` on a test set before use.
"""
_TEACHER = "| `teacher.onnx` | the original, whose outputs are the target |\n"
_PLAN = "| `plan.json` | what was removed |\n"


def readme(teacher: bool, plan: bool) -> str:
    """The page, without what the bundle does not have."""
    towards = " towards the outputs of `teacher.onnx`" if teacher else " on the labels"
    labels = "" if teacher else ", and `labels`"
    return _PAGE.format(labels=labels, teacher=_TEACHER if teacher else "", plan=_PLAN if plan else "", towards=towards)
