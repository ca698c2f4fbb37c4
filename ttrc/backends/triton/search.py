"""Searches as Triton: loops. Names that begin with _ are nobody else's: no tile's and no gate's does."""

from __future__ import annotations


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


def conjugate(x: str, tried: str, rhs: str, diagonal: str, axis: int, body: list[str], applied: str, products: bool):
    """The lines that find x, all rows together; `body` makes `applied` of what is tried, by matrix products or not."""
    parts = ("size", "rest", "enough", "going", "unit", "inverse")
    size, rest, enough, going, unit, inverse = (f"_{x}_{part}" for part in parts)
    # In half precision, rounding of what the products take is found long before that of float32.
    rounding = '(1e-14 if PRECISION == "ieee" else 1e-10)' if products else "1e-14"
    moved = f"{x}, {rest}, {tried}, {size}"
    step = [*body, f"{moved} = conjugate_step({moved}, {applied}, {enough}, {inverse}, {axis})"]
    left = f"tl.max(tl.where({size} > {enough}, 1, 0))"
    return [
        f"{rest}, {unit} = unit_rows({rhs}, {axis})",
        f"{inverse} = 1.0 / {diagonal}",
        f"{x}, {tried} = {rest} * 0.0, {rest} * {inverse}",
        f"{size} = tl.sum({rest} * {tried}, {axis}, keep_dims=True)",
        f"{enough} = {size} * {rounding}",
        *_until_solved(going, left, products, step),
        f"{x} *= {unit}",
    ]


def _until_solved(going: str, left: str, products: bool, step: list[str]) -> list[str]:
    """Steps until all rows are solved; those that are stay as they are.

    Triton 3.6 cannot lay out all registers of a `while` where there are no products, and of an `if` where there are.
    """
    if products:
        head = [f"{going} = 2 * BK + 8", f"while {going} > 0:"]
        steps = [*(f"    {line}" for line in step), f"    {going} = tl.where({left} > 0, {going} - 1, 0)"]
        # It is 0, which no compiler knows: so addresses are not kept in registers all through the search.
        return [*head, *steps, f"token, i_chunk = token + {going}, i_chunk + {going}"]
    head = [f"{going} = {left}", "for _ in range(0, 2 * BK + 8):", f"    if {going} > 0:"]
    return [*head, *(f"        {line}" for line in step), f"        {going} = {left}"]
