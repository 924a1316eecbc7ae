"""Sixteen float32 as one value of numba, so that LLVM need not prove that a loop is vector code.

LLVM splits such a value into the registers that a processor has. This file and the kernels import
numba, which is optional and has no types: import them within a function. Who changes this file
saves the kernels anew too: numba's cache looks at the file of the function that was called only.
"""

# mypy: ignore-errors

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16
FLOAT, WORD = ir.FloatType(), ir.IntType(32)
FLOATS, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(WORD, LANES)
LOWEST, HIGHEST = -87.0, 88.0  # exponents whose exp float32 holds
# exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2, as in the Cephes library; highest power first
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
LOG2_E = 1.4426950408889634
LN_2 = (0.693359375, -2.12194440e-4)  # in two parts, the first exact in few bits


class _Vector(types.Type):
    def __init__(self):
        super().__init__(name="float32x16")


vector = _Vector()


@register_model(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, FLOATS)


def _operator(function, instruction):
    """`function` of two vectors is one LLVM instruction, which may fuse with its neighbours."""

    @infer_global(function)
    class _Typing(ConcreteTemplate):
        cases = (signature(vector, vector, vector),)

    @lower_builtin(function, _Vector, _Vector)
    def lower(context, builder, sig, args):
        return getattr(builder, instruction)(*args, flags=("contract",))


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _constant(value, kind=FLOATS):
    return ir.Constant(kind, [value] * LANES)


def _declared(builder, name):
    """LLVM's own function of a vector."""
    kind = ir.FunctionType(FLOATS, [FLOATS])
    return builder.module.declare_intrinsic(f"llvm.{name}.v{LANES}f32", fnty=kind)


def _place(context, builder, array, values, at):
    """Pointer to 16 floats of an array's memory, counted in floats from its start."""
    data = context.make_array(array)(context, builder, values).data
    return builder.bitcast(builder.gep(data, [at]), FLOATS.as_pointer())


@intrinsic
def load(typing, array, at):
    """Sixteen floats of a contiguous array from flat index `at` on."""

    def code(context, builder, sig, args):
        found = builder.load(_place(context, builder, sig.args[0], *args))
        found.align = 4
        return found

    return vector(array, types.intp), code


@intrinsic
def store(typing, array, at, value):
    """Write a vector to a contiguous array from flat index `at` on."""

    def code(context, builder, sig, args):
        place = _place(context, builder, sig.args[0], *args[:2])
        builder.store(args[2], place).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def splat(typing, value):
    """A vector of one float sixteen times."""

    def code(context, builder, sig, args):
        empty = ir.Constant(FLOATS, ir.Undefined)
        first = builder.insert_element(empty, args[0], ir.Constant(WORD, 0))
        return builder.shuffle_vector(first, empty, _constant(0, WORDS))

    return vector(types.float32), code


@intrinsic
def total(typing, value):
    """The sum of a vector's floats, in an order of LLVM's."""

    def code(context, builder, sig, args):
        kind = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        reduce = builder.module.declare_intrinsic(name, fnty=kind)
        return builder.call(reduce, [ir.Constant(FLOAT, -0.0), args[0]], fastmath=("reassoc",))

    return types.float32(vector), code


@intrinsic
def exp(typing, value):
    """exp of each float, within 1e-7 of it; of less than -87 that of -87, of more than 88 so."""

    def code(context, builder, sig, args):
        def fma(a, b, c):
            return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

        x = args[0]
        for limit, sign in ((LOWEST, "<"), (HIGHEST, ">")):
            beyond = builder.fcmp_ordered(sign, x, _constant(limit))
            x = builder.select(beyond, _constant(limit), x)
        power = fma(x, _constant(LOG2_E), _constant(0.5))
        power = builder.call(_declared(builder, "floor"), [power])
        r = fma(power, _constant(-LN_2[0]), x)
        r = fma(power, _constant(-LN_2[1]), r)
        p = _constant(EXP[0])
        for coefficient in EXP[1:]:
            p = fma(p, r, _constant(coefficient))
        p = fma(p, builder.fmul(r, r), builder.fadd(r, _constant(1.0)))
        word = builder.add(builder.fptosi(power, WORDS), _constant(127, WORDS))
        two = builder.bitcast(builder.shl(word, _constant(23, WORDS)), FLOATS)
        return builder.fmul(p, two)

    return vector(vector), code


@intrinsic
def positive(typing, value):
    """Each float, 0 instead of one below it."""

    def code(context, builder, sig, args):
        below = builder.fcmp_ordered("<", args[0], _constant(0.0))
        return builder.select(below, _constant(0.0), args[0])

    return vector(vector), code


@intrinsic
def magnitude(typing, value):
    """The absolute value of each float."""

    def code(context, builder, sig, args):
        return builder.call(_declared(builder, "fabs"), args)

    return vector(vector), code
