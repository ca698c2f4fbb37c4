"""Searches as Triton: loops. Names that begin with _ are nobody else's: no tile's and no gate's does."""

from __future__ import annotations

from dataclasses import dataclass


def root(x: str, base: str, pull: str, slope: str, scalar: bool) -> list[str]:
    """The lines that find x with x + pull = base, entry by entry; `slope` is that of the pull."""
    low, high, step, moving = (f"_{x}_{part}" for part in ("low", "high", "step", "moving"))
    state = f"{x}, {low}, {high}, {step}"
    longest = step if scalar else f"tl.max({step})"
    return [
        f"{x} = {base}",
        f"{low}, {high}, {step} = {x}, {x}, {x} + float('inf')",
        f"{moving} = 200",
        f"while {moving} > 0:  # until all have come to rest",
        f"    {state} = root_step({state}, {base}, {pull}, {slope})",
        f"    {moving} = tl.where({longest} > 0, {moving} - 1, 0)",
    ]


MOST = "2 * BK + 8"  # steps


@dataclass(frozen=True)
class Search:
    """The lines of a search for x, all rows together: ahead of its steps, at the end of each, and behind them."""

    ahead: list[str]
    step: list[str]
    left: str  # what is more than 0 while a row is not solved
    going: str
    behind: list[str]


def conjugate(x: str, tried: str, rhs: str, diagonal: str, axis: int, applied: str, products: bool) -> Search:
    """What is tried has `applied` made of it, by matrix products or not."""
    parts = ("size", "rest", "enough", "going", "unit", "inverse")
    size, rest, enough, going, unit, inverse = (f"_{x}_{part}" for part in parts)
    # In half precision, rounding of what the products take is found long before that of float32.
    rounding = '(1e-14 if PRECISION == "ieee" else 1e-10)' if products else "1e-14"
    moved = f"{x}, {rest}, {tried}, {size}"
    ahead = [
        f"{rest}, {unit} = unit_rows({rhs}, {axis})",
        f"{inverse} = 1.0 / {diagonal}",
        f"{x}, {tried} = {rest} * 0.0, {rest} * {inverse}",
        f"{size} = tl.sum({rest} * {tried}, {axis}, keep_dims=True)",
        f"{enough} = {size} * {rounding}",
    ]
    step = [f"{moved} = conjugate_step({moved}, {applied}, {enough}, {inverse}, {axis})"]
    return Search(ahead, step, f"tl.max(tl.where({size} > {enough}, 1, 0))", going, [f"{x} *= {unit}"])


def steps(search: Search, body: list[str], products: bool) -> list[str]:
    """All lines: steps until all rows are solved; those that are stay as they are.

    Triton 3.6 cannot lay out all registers of a `while` where there are no products, and of an `if` where there are.
    """
    going, step = search.going, [*body, *search.step]
    if products:
        head = [*search.ahead, f"{going} = {MOST}", f"while {going} > 0:"]
        lines = [*head, *(f"    {line}" for line in (*step, *again(search)))]
        # It is 0, which no compiler knows: so addresses are not kept in registers all through the search.
        lines += [f"token, i_chunk = token + {going}, i_chunk + {going}"]
    else:
        head = [*search.ahead, f"{going} = {search.left}", f"for _ in range(0, {MOST}):", f"    if {going} > 0:"]
        lines = [*head, *(f"        {line}" for line in step), f"        {going} = {search.left}"]
    return [*lines, *search.behind]


def again(search: Search) -> list[str]:
    return [f"{search.going} = tl.where({search.left} > 0, {search.going} - 1, 0)"]
