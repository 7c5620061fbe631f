"""Element-wise ops: a position of the output is removed with the same position of every operand."""

from __future__ import annotations

from onnxprune.factors import View
from onnxprune.rules import Arg, Tracer, rule


@rule(
    *(
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitwiseNot",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Elu",
    ),
    *(
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Mish",
    ),
    *("Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Cast"),
)
def unary(t: Tracer, X: Arg) -> View:
    """y[i] = f(x[i]); bounds are scalars."""
    return X.view


@rule("CastLike")
def cast_like(t: Tracer, input: Arg, target_type: Arg) -> View:
    """y[i] = x[i]; of the other input only the type is read."""
    t.name(*target_type.view)
    return input.view


@rule("Dropout")
def dropout(t: Tracer, data: Arg) -> list[View]:
    """y[i] = x[i], and a mask of the same shape."""
    return [data.view, data.view]


@rule(
    *(
        "Add",
        "And",
        "BitShift",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
    ),
    *("LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
)
def broadcasting(t: Tracer, *operands: Arg) -> View:
    """y[i] = f(a[i], b[i], ...) with numpy broadcasting."""
    return t.align([(a.view, a.shape) for a in operands], "operands of an element-wise op lose the same positions")


@rule("Gelu", "BiasGelu", "FastGelu", "QuickGelu", domain="com.microsoft")
def fused_gelu(t: Tracer, X: Arg, bias: Arg | None = None) -> View:
    """onnxruntime's fused forms: gelu(x + bias)."""
    return X.view if bias is None else broadcasting(t, X, bias)
