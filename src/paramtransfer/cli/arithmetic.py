"""Arithmetic in configurations: `${calc:"${regime.n} ** 2"}`."""

import ast
import operator
from collections.abc import Callable

from omegaconf import OmegaConf

Number = int | float

_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def register_resolvers() -> None:
    """`${calc:"..."}` in a configuration: arithmetic with + - * / ** and parentheses on interpolated numbers."""
    OmegaConf.register_new_resolver("calc", _calculate, replace=True)


def _calculate(expression: str) -> Number:
    def value(node: ast.expr) -> Number:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f'${{calc:"{expression}"}}: must be arithmetic with numbers, + - * / ** and parentheses')

    result = value(ast.parse(str(expression), mode="eval").body)
    return int(result) if result == int(result) else result
