"""What the schema validator found, in the words of a spec's author: one error, the most telling one."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from ttrc.errors import SpecError, did_you_mean, plain
from ttrc.language.document import Document
from ttrc.language.schema import json_schema

_VALIDATOR = Draft202012Validator(json_schema())

_TYPES = {
    "object": "a table",
    "string": "a string, in quotes",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


SEVERAL = "of several losses each is a table of its own, [loss.NAME]"
KEEPS_NO_PAIRS = 'a window is of pairs of tokens, which kind = "kernel" keeps; a state forgets by its retention'
NO_LAST_STEP = 'steps in turn are several a token, and a momentum keeps one; at = "previous" or "retained" takes one'


def check_schema(document: Document) -> None:
    """Raise one SpecError where the document does not follow the schema."""
    errors = [_complaint(error, document) for error in _VALIDATOR.iter_errors(document.data)]
    if errors:
        raise min(errors, key=lambda ranked: ranked[:2])[2]


def _complaint(error: ValidationError, document: Document) -> tuple[int, int, SpecError]:
    """A finding's rank, its line, and the message.

    A wrong version explains everything else. A key that is unknown is often one that is missed, misspelt, and
    its place is surer: so unknown keys come before wrong values, and those before missing keys.
    """
    keys = tuple(str(key) for key in error.absolute_path)
    schema, value = error.schema, error.instance
    expected, hint = schema.get("description"), None
    rank = 0 if keys == ("schema",) else 2
    match error.validator:
        case "additionalProperties":
            surplus = (key for key in value if key not in schema["properties"])
            unknown = min(surplus, key=lambda key: document.line(*keys, key))
            rank, keys = 1, (*keys, unknown)
            message = f"{schema['title']} takes no key {_quote(unknown)}"
            expected = "one of " + ", ".join(schema["properties"])
            hint = did_you_mean(unknown, schema["properties"])
            hint = SEVERAL if keys == ("loss", unknown) and isinstance(value[unknown], dict) else hint
            hint = KEEPS_NO_PAIRS if keys == ("memory", "window") else hint
            hint = NO_LAST_STEP if keys == ("update", "momentum") and value.get("at") == "in_turn" else hint
        case "required":
            missing = next(key for key in error.validator_value if key not in value)
            rank, keys = 0 if missing == "schema" else 3, (*keys, missing)
            message = f"{schema['title']} lacks the key {_quote(missing)}"
            described = schema["properties"][missing]
            expected = described.get("description") or described.get("title")
        case "enum":
            message = f"{_describe(value)} has no meaning here"
            expected = "one of " + ", ".join(f'"{word}"' for word in error.validator_value)
            hint = did_you_mean(value, error.validator_value) if isinstance(value, str) else None
        case "type":
            message = f"{_describe(value)} is of the wrong type"
            expected = _TYPES[error.validator_value]
            hint = SEVERAL if keys == ("loss",) else None
        case "not":
            message = f"the name {_quote(value)} is reserved"
            expected = f"a name that is not {error.validator_value['description']}"
            hint = f"{_quote(value + '_')} is not" if value.islower() and len(value) < 24 else "take a longer word"
        case "pattern" if "propertyNames" in error.absolute_schema_path:
            what = "an association" if keys[:1] == ("loss",) else "an input"
            message = f"{_quote(value)} cannot be the name of {what}"
        case "maxProperties":
            what = "losses" if keys == ("loss",) else "keys"
            message, expected = f"too many {what}: {len(value)}", f"at most {error.validator_value}"
        case "minLength" | "maxLength":
            message = f"the text has {len(value)} characters"
            expected = f"{'at least' if error.validator == 'minLength' else 'at most'} {error.validator_value}"
        case "minimum" | "maximum":
            message = f"{_describe(value)} is out of range"
            kind = _TYPES[schema["type"]]
            expected = f"{kind} from {schema['minimum']} to {schema['maximum']}: {expected}"
        case _:  # const, pattern
            message = f"{_describe(value)} will not do"
    if "propertyNames" in error.absolute_schema_path:
        keys = (*keys, value)
    line = document.line(*keys)
    return rank, line, SpecError(message, line=line, key=".".join(keys) or None, expected=expected, hint=hint)


def _quote(name: str) -> str:
    return f'"{plain(name, 40)}"'


def _describe(value: Any) -> str:
    match value:
        case str():
            return _quote(value)
        case bool():
            return str(value).lower()
        case int() | float():
            return plain(value, 40)
        case dict():
            return "a table"
        case list():
            return "an array"
        case _:
            return "a date or time"
