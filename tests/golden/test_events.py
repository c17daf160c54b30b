"""The log events: every constant event of the source, its levels and the keys of its values.

Read from the source, so that those of rare failures are among them; the module does not count.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.golden import golden

PACKAGES = ("node", "inference", "storage")
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
UNREAD = "..."  # values that the source does not list where they are logged
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


def test_the_log_events_and_their_keys() -> None:
    events: dict[str, set[str]] = defaultdict(set)
    levels: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for path in sorted(Path(package).rglob("*.py")):
            for event, level, keys in logged(ast.parse(path.read_text(encoding="utf-8"))):
                events[event] |= keys
                levels[event].add(level)
    lines = [
        f"{event} [{' '.join(sorted(levels[event]))}]: {' '.join(sorted(events[event]))}".rstrip(
            ": "
        )
        for event in sorted(events)
    ]
    assert len(lines) > 50
    golden.check("log-events.txt", "\n".join(lines) + "\n")


def logged(module: ast.Module) -> Iterator[tuple[str, str, set[str]]]:
    for call in ast.walk(module):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        owner = call.func.value
        if not (isinstance(owner, ast.Name) and owner.id == "logger" and call.func.attr in LEVELS):
            continue
        given = next((word.value for word in call.keywords if word.arg == "extra"), None)
        scope = _function_of(module, call)
        for event in _constants(call.args[0]):
            yield event, call.func.attr, _keys(given, scope, module)


def _constants(first: ast.expr) -> list[str]:
    """The event, or the two of a conditional expression."""
    if isinstance(first, ast.IfExp):
        return _constants(first.body) + _constants(first.orelse)
    is_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return [first.value] if is_text else [f"<{ast.unparse(first)}>"]


def _function_of(module: ast.Module, call: ast.Call) -> ast.AST:
    """The innermost function around a call."""
    around = [
        node
        for node in ast.walk(module)
        if isinstance(node, AnyFunction) and call in set(ast.walk(node))
    ]
    return min(around, key=lambda node: len(list(ast.walk(node))), default=module)


def _keys(given: ast.expr | None, scope: ast.AST, module: ast.Module) -> set[str]:
    match given:
        case None:
            return set()
        case ast.Dict():
            pairs = zip(given.keys, given.values, strict=True)
            return set().union(
                *(
                    {_text(key)} if key is not None else _keys(value, scope, module)
                    for key, value in pairs
                )
            )
        case ast.BinOp(op=ast.BitOr()):
            return _keys(given.left, scope, module) | _keys(given.right, scope, module)
        case ast.Name():
            return _assigned(given.id, scope, module)
        case ast.Call(func=ast.Name(id=name)):
            return _returned(name, module)
        case ast.Call(func=ast.Attribute(attr=name)):
            return _returned(name, module)
        case ast.IfExp():
            return _keys(given.body, scope, module) | _keys(given.orelse, scope, module)
    return {UNREAD}


def _text(key: ast.expr) -> str:
    return str(key.value) if isinstance(key, ast.Constant) else UNREAD


def _assigned(name: str, scope: ast.AST, module: ast.Module) -> set[str]:
    """The keys of everything that this name is given in the function."""
    keys: set[str] = set()
    is_given = False
    for node in ast.walk(scope):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AnnAssign(target=ast.Name(id=target), value=value)
                | ast.AugAssign(target=ast.Name(id=target), value=value)
            ) if target == name:
                keys |= _keys(value, scope, module)
                is_given = True
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=target), slice=key)]) if (
                target == name
            ):
                keys.add(_text(key))
    if is_given or not isinstance(scope, AnyFunction):
        return keys
    return keys | _handed(name, scope, module)


def _handed(name: str, function: AnyFunction, module: ast.Module) -> set[str]:
    """The keys of what the calls of the same module give for a parameter."""
    names = [argument.arg for argument in function.args.args if argument.arg != "self"]
    keywords = [argument.arg for argument in function.args.kwonlyargs]
    is_rest = function.args.kwarg is not None and function.args.kwarg.arg == name
    if not is_rest and name not in names + keywords:
        return {UNREAD}
    keys: set[str] = set()
    for call in ast.walk(module):
        match call:
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)):
                if called != function.name:
                    continue
                given = dict(zip(names, call.args, strict=False))
                given |= {word.arg: word.value for word in call.keywords if word.arg}
                if is_rest:
                    keys |= given.keys() - {*names, *keywords}
                elif name in given:
                    keys |= _keys(given[name], _function_of(module, call), module)
    return keys or {UNREAD}


def _returned(name: str, module: ast.Module) -> set[str]:
    """The keys of what a function of the same module returns."""
    for function in ast.walk(module):
        if isinstance(function, AnyFunction) and function.name == name:
            returns = [node for node in ast.walk(function) if isinstance(node, ast.Return)]
            return set().union(*(_keys(node.value, function, module) for node in returns))
    return {UNREAD}
