"""Makes the text of a PL/pgSQL function readable to a parser that has no catalogue.

libpg_query compiles a body without knowing any type: a variable of a row type is a scalar to it, so
that it refuses ``r.total := 1``; arguments do not exist. Neither changes what a body refers to, so
arguments are declared around the body, and a variable that the parser complains of is declared as a
``record``, or a ``refcursor``, instead. Whatever type it really has is reported all the same. The
expressions of a body that was compiled are handed out as statements of SQL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tidegate.engines.postgres import script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.bodies.names import Body

#: Complaints of the parser about a variable, and what to declare it as.
_COMPLAINTS: Final = (
    (re.compile(r'"(?P<name>[^"]+?)\.[^"]*" is not a known variable'), "record"),
    (re.compile(r'"(?P<name>[^".]+)" is not a known variable'), "record"),
    (re.compile(r'variable "(?P<name>[^"]+)" must be of type cursor or refcursor'), "refcursor"),
    (re.compile(r'record variable "(?P<name>[^"]+)" cannot be part of'), "text"),
)
_NUMBERED: Final = re.compile(r"\$[0-9]")
_OPTION: Final = re.compile(r"\A(?:\s*#[^\n]*\n?)+")
_NAME: Final = re.compile(r"[a-z_\x80-\U0010ffff][a-z0-9_$\x80-\U0010ffff]*")
_ROW: Final = re.compile(r"\s*%\s*(?:ROW)?TYPE\b.*\Z", re.IGNORECASE | re.DOTALL)

#: parseMode of an expression in libpg_query's output (RawParseMode of the server).
STATEMENT: Final = 0
EXPRESSION: Final = 2
ASSIGNMENTS: Final = (3, 4, 5)


@dataclass(frozen=True)
class Token:
    """A piece of the text that is neither space nor comment."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Adapted:
    """A body on its way to the parser; ``types`` are those that declarations lost."""

    body: Body
    arguments: tuple[tuple[str, str], ...] = ()
    types: tuple[str, ...] = ()


def adapt(body: Body) -> Adapted:
    """A body with ``$1`` written as a name."""
    pieces, at = [], 0
    tokens = _tokens(body.text) if _NUMBERED.search(body.text) else []
    for token, following in zip(tokens, [*tokens[1:], None], strict=False):
        if (
            token.text == "$"
            and following is not None
            and following.kind == "number"
            and following.start == token.end
        ):
            number = re.match(r"[0-9]+", following.text)
            if number is not None:
                pieces += [body.text[at : token.start], _argument(body, int(number[0]))]
                at = following.start + number.end()
    text = "".join([*pieces, body.text[at:]])
    names = [name or f"tg_argument_{i}" for i, name in enumerate(body.inputs, start=1)]
    declared = {name: "text" for name in (*names, *body.positions) if name}
    for name in body.outputs:
        declared.pop(name, None)
    return Adapted(replace(body, text=text), tuple(declared.items()))


def _argument(body: Body, number: int) -> str:
    name = body.positions[number - 1] if number <= len(body.positions) else ""
    return _identifier(name) if name else f"tg_argument_{number}"


def function(adapted: Adapted) -> str:
    """The statement to parse."""
    body = adapted.body
    options = _OPTION.match(body.text)
    head = options[0] if options else ""
    inner = body.text[len(head) :].rstrip().rstrip(";")
    declared = "".join(f"{_identifier(n)} {t}; " for n, t in adapted.arguments)
    text = f"{head} DECLARE {declared} BEGIN {inner}; END" if declared else body.text
    quote = "$tidegate$"
    while quote in text:
        quote = f"{quote[:-1]}_$"
    outputs = ", ".join(f"OUT {_identifier(name)} text" for name in body.outputs)
    returns = {
        "trigger": "RETURNS trigger",
        "event_trigger": "RETURNS event_trigger",
        "void": "RETURNS void",
        "set": "RETURNS SETOF record" if body.outputs else "RETURNS SETOF text",
    }.get(body.returns, "RETURNS record" if len(body.outputs) > 1 else "RETURNS text")
    return f"CREATE FUNCTION f({outputs}) {returns} LANGUAGE plpgsql AS {quote}{text}{quote}"


def mended(adapted: Adapted, complaint: str) -> Adapted | None:
    """The body with the variable that the parser complained of declared otherwise, or None."""
    for pattern, kind in _COMPLAINTS:
        found = pattern.search(complaint)
        if found is None:
            continue
        name = found["name"]
        text, lost = _declared_as(adapted.body.text, name, kind)
        if lost:
            return replace(
                adapted, body=replace(adapted.body, text=text), types=(*adapted.types, *lost)
            )
        known = dict(adapted.arguments)
        if known.get(name) == kind or not _knows(adapted, name):
            continue
        return replace(adapted, arguments=tuple((known | {name: kind}).items()))
    return None


def _knows(adapted: Adapted, name: str) -> bool:
    return name in dict(adapted.arguments) or name in adapted.body.outputs


def _declared_as(text: str, name: str, kind: str) -> tuple[str, list[str]]:
    """The text with the variable declared as ``kind``, and the types it was declared with."""
    pieces, at, lost = [], 0, []
    for start, end, declared in _declarations(text):
        if declared != name or text[start:end].strip().lower() == kind:
            continue
        lost.append(text[start:end].strip())
        pieces += [text[at:start], kind]
        at = end
    return "".join([*pieces, text[at:]]), lost


def _declarations(text: str) -> Iterator[tuple[int, int, str]]:
    """(begin, end, variable) of each type in the DECLARE sections of a text."""
    tokens = _tokens(text)
    at = 0
    while at < len(tokens):
        if _word(tokens, at) != "declare":
            at += 1
            continue
        at += 1
        while at < len(tokens) and _word(tokens, at) != "begin":
            if _word(tokens, at) == "declare":
                at += 1
                continue
            end = _end_of_declaration(tokens, at)
            first = at + 1 + (_word(tokens, at + 1) == "constant")
            last = _end_of_type(tokens, first, end)
            if last > first and _word(tokens, first) not in {"alias", "cursor", "no", "scroll"}:
                yield tokens[first].start, tokens[last - 1].end, _folded(tokens[at].text)
            at = end + 1


def _end_of_declaration(tokens: list[Token], at: int) -> int:
    depth = 0
    while at < len(tokens) and (depth or tokens[at].kind != "semicolon"):
        depth += {"open": 1, "close": -1}.get(tokens[at].kind, 0)
        at += 1
    return at


def _end_of_type(tokens: list[Token], at: int, end: int) -> int:
    while at < end:
        if _word(tokens, at) in {"not", "default", "collate"} or tokens[at].text in {":", "="}:
            return at
        at += 1
    return at


def _word(tokens: list[Token], at: int) -> str:
    if at < len(tokens) and tokens[at].kind == "word":
        return tokens[at].text.lower()
    return ""


def _tokens(text: str) -> list[Token]:
    return [
        Token(kind, text[at:end], at, end)
        for kind, at, end in script.tokens(text)
        if kind not in {"space", "line", "block"}
    ]


def _folded(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


def _identifier(name: str) -> str:
    return name if _NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def expressions(tree: Any) -> Iterator[tuple[str, bool]]:
    """(statement, whether it is run as text) of every expression in a compiled body."""
    if isinstance(tree, list):
        for each in tree:
            yield from expressions(each)
        return
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        if key == "PLpgSQL_expr":
            for statement in _statements(value["query"], value.get("parseMode", STATEMENT)):
                yield statement, False
        elif key == "dynquery" or (
            key == "query" and isinstance(value, dict) and _is_dynamic(tree)
        ):
            yield f"SELECT {value['PLpgSQL_expr']['query']}", True
        else:
            yield from expressions(value)


def _is_dynamic(node: dict[str, Any]) -> bool:
    """``EXECUTE`` and ``FOR … IN EXECUTE`` hold their text where others hold a statement."""
    mode = node["query"].get("PLpgSQL_expr", {}).get("parseMode")
    return bool(mode == EXPRESSION)


def _statements(query: str, mode: int) -> Iterator[str]:
    if mode == STATEMENT:
        yield query
    elif mode in ASSIGNMENTS:
        target, value = _assignment(query)
        yield f"SELECT {value}"
        if "[" in target:
            yield f"SELECT {target}"
    else:
        yield f"SELECT {query}"


def _assignment(query: str) -> tuple[str, str]:
    """Target and value of an assignment."""
    depth = 0
    for token in _tokens(query):
        depth += {"open": 1, "close": -1}.get(token.kind, 0)
        if not depth and token.text == "=":
            return query[: token.start].rstrip().removesuffix(":"), query[token.end :]
    return "", query


def type_names(tree: Any) -> Iterator[str]:
    """The types of all variables of a compiled body, as the text has them."""
    if isinstance(tree, list):
        for each in tree:
            yield from type_names(each)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if key == "PLpgSQL_type":
                yield value["typname"]
            else:
                yield from type_names(value)


def base_of(type_name: str) -> tuple[str, str]:
    """(type, how it is meant): ``row`` for ``t%ROWTYPE``, ``column`` for ``t.c%TYPE``, or plain."""
    base = _ROW.sub("", type_name)
    if base == type_name:
        return type_name, ""
    return base.strip(), "row" if "rowtype" in type_name.lower() else "column"
