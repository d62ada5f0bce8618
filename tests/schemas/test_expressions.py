from __future__ import annotations

import sys
from threading import Thread

import jmespath
import pytest
from jmespath.parser import Parser

from schemas.expressions import DEPTH_MAX, LENGTH_MAX, check_expression

NESTED = {  # an expression so many levels deep
    "parentheses": lambda levels: "(" * levels + "a" + ")" * levels,
    "not": lambda levels: "!" * levels + "a",
    "or": lambda levels: "||".join("a" * (levels + 1)),
    "pipe": lambda levels: "|".join("a" * (levels + 1)),
    "filter": lambda levels: "a[?" * levels + "a" + "]" * levels,
    "hash": lambda levels: "{a:" * levels + "a" + "}" * levels,
    "list": lambda levels: "[" * levels + "a" + "]" * levels,
    "function": lambda levels: "length(" * levels + "a" + ")" * levels,
    "mapping": lambda levels: "map(&" * levels + "a" + ", @)" * levels,
    "wildcards": lambda levels: "a" + ".*" * levels,
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("levels", [DEPTH_MAX + 1, 2000])
def test_an_expression_that_is_too_deep_or_too_long_is_refused(kind: str, levels: int) -> None:
    with pytest.raises(ValueError, match=r"expected a jmespath expression (nested at most 64 deep|of at most 1000)"):
        check_expression(NESTED[kind](levels))


@pytest.mark.parametrize("kind", NESTED)
def test_what_is_taken_can_be_read_and_evaluated_where_half_of_the_stack_is_used_up(kind: str) -> None:
    taken = [text for levels in range(1, DEPTH_MAX + 1) if is_taken(text := NESTED[kind](levels))]
    found: list[object] = []

    def at_depth(depth: int) -> None:
        if depth:
            return at_depth(depth - 1)
        try:
            Parser.purge()
            jmespath.compile(taken[-1]).search({"a": {"a": [[{"a": "text"}]]}})
        except jmespath.exceptions.JMESPathError as error:  # the wrong type: evaluated, after all
            found.append(error)
        except RecursionError as error:
            found.append(error)
        else:
            found.append(None)
        return None

    thread = Thread(target=at_depth, args=(sys.getrecursionlimit() // 2,))
    thread.start()
    thread.join()
    assert len(found) == 1
    assert not isinstance(found[0], RecursionError)


def is_taken(text: str) -> bool:
    try:
        check_expression(text)
    except ValueError:
        return False
    return True


def test_conditions_as_people_write_them_are_taken() -> None:
    for text in (
        "a" * LENGTH_MAX,
        " || ".join(f"action.kind == '{kind}'" for kind in range(40)),
        "items[?price > `10` && !(sold || contains(tags, 'x'))].{id: id, all: sort_by(parts, &at)[0].name} | [0].id",
    ):
        check_expression(text)
