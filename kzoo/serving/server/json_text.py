"""JSON as RapidJSON reads and prints it, which is what TensorFlow Serving's clients see.

Good documents are read by orjson, all others by the standard library; this module adds what
differs: where parsing stops, the texts and byte offsets of parse errors, and the layout of the
printed document.
"""

import base64
import binascii
import json
import math
import re

import orjson

from kzoo.serving.server.errors import invalid_argument

DEBUG_LIMIT = 256
_INDENT = 4
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# An escaped backslash, a good surrogate pair, or (the group) a surrogate without its partner.
_SURROGATE = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_TYPES = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}


def type_name(value):
    """Returns RapidJSON's name of the value's type."""
    if value is None or isinstance(value, bool):
        return {None: "Null", False: "False", True: "True"}[value]
    return _TYPES[type(value)]


def parse(body):
    """Parses the first JSON value in `body` (bytes); what follows it is ignored.

    NaN, Infinity and -Infinity are numbers. Bytes that are not UTF-8 survive in strings as
    surrogate escapes.

    Raises:
        ServingError: INVALID_ARGUMENT with RapidJSON's text and byte offset.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN and its like, text behind the value, what is malformed
        return _parse_as_rapidjson(body)


def _parse_as_rapidjson(body):
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    start = _SPACE.match(text).end()
    if start == len(text):
        raise _parse_error(text, "The document is empty.", start)
    try:
        document, _ = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _parse_error(text, *_translate(text, error)) from error
    except RecursionError as error:
        raise invalid_argument("JSON Parse error: The document is nested too deeply.") from error
    except OverflowError as error:
        reason = "Number too big to be stored in double."
        raise _parse_error(text, reason, _first_infinite_number(text, start)) from error
    for match in _SURROGATE.finditer(text) if "\\u" in text else ():
        if match.group(1):
            raise _parse_error(text, "The surrogate pair in string is invalid.", match.start())
    return document


def _float(text):
    value = float(text)
    if math.isinf(value):
        raise OverflowError(text)
    return value


def _integer(text):
    """An integer of 64 bits, with or without a sign; beyond that a double, as in RapidJSON."""
    value = int(text) if len(text) <= 20 else None
    return _float(text) if value is None or not -(2**63) <= value < 2**64 else value


def _first_infinite_number(text, start):
    """Returns the position of the number that is beyond the range of a double."""
    text = _STRING.sub(lambda string: " " * len(string.group()), text)
    for number in _NUMBER.finditer(text, start):
        if math.isinf(float(number.group())):
            return number.start()
    raise AssertionError("no number is too big")


_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_integer)


def is_base64(value):
    """True for {"b64": "<text>"}: an object that stands for bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(text):
    """Returns the bytes, or None if `text` is not base64; padding may be left off."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _parse_error(text, reason, position):
    offset = len(text[:position].encode("utf-8", "surrogateescape"))
    return invalid_argument(f"JSON Parse error: {reason} at offset: {offset}")


def _translate(text, error):
    """Returns RapidJSON's (text, position) for an error of the standard library."""
    position, message = error.pos, error.msg
    if message.startswith("Expecting property name"):
        return "Missing a name for object member.", position
    if message.startswith("Expecting ':'"):
        return "Missing a colon after a name of object member.", position
    if message.startswith("Expecting ','"):
        return _translate_delimiter(text, position)
    if message.startswith("Unterminated string"):
        return "Missing a closing quotation mark in string.", len(text)
    if message.startswith("Invalid control character"):
        return "Invalid encoding in string.", position
    if message.startswith("Invalid \\escape"):
        return "Invalid escape character in string.", position
    if message.startswith("Invalid \\u"):
        start = text.rfind("\\", 0, position + 1)
        return "Incorrect hex digit after \\u escape in string.", start
    if message.startswith("Illegal trailing comma"):
        position = _SPACE.match(text, position + 1).end()
        if text[position] == "}":
            return "Missing a name for object member.", position
        return "Invalid value.", position
    return "Invalid value.", _end_of_bad_value(text, position)


def _translate_delimiter(text, position):
    broken = re.compile(r"\.|[eE][+-]?").match(text, position)
    if broken and text[position - 1].isdigit():
        part = "fraction part" if broken.group() == "." else "exponent"
        return f"Miss {part} in number.", broken.end()
    if _open_bracket(text[:position]) == "{":
        return "Missing a comma or '}' after an object member.", position
    return "Missing a comma or ']' after an array element.", position


def _open_bracket(text):
    """Returns the innermost bracket that is still open at the end of `text`."""
    stack = []
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        if bracket in "[{":
            stack.append(bracket)
        else:
            stack.pop()
    return stack[-1]


def _end_of_bad_value(text, position):
    """RapidJSON points behind what it could read of a literal: `nul` fails at its fourth byte."""
    best = position
    for literal in ("null", "true", "false", "NaN", "Infinity", "-Infinity"):
        length = 0
        while text[position + length : position + length + 1] == literal[length : length + 1] != "":
            length += 1
        best = max(best, position + length)
    return best


class _LimitedPrinter:
    """Prints a document as RapidJSON's PrettyWriter does, until `DEBUG_LIMIT` characters are out.

    The document may end in the middle, but not inside a token.
    """

    def __init__(self):
        self.text = ""

    def value(self, value, depth, lead=""):
        """Writes a value; `lead` goes out with its first token. False once the limit is hit."""
        if isinstance(value, dict):
            return self._object(value, depth, lead)
        if isinstance(value, list):
            return self._array(value, depth, lead)
        return self._write(lead + _scalar(value))

    def _object(self, value, depth, lead):
        if not self._write(lead + "{"):
            return False
        for index, (key, item) in enumerate(value.items()):
            comma = "," if index else ""
            if not self._write(f"{comma}{newline(depth + 1)}{quote(key)}"):
                return False
            if not self.value(item, depth + 1, ": "):
                return False
        return self._write((newline(depth) if value else "") + "}")

    def _array(self, value, depth, lead):
        if not self._write(lead + "["):
            return False
        for index, item in enumerate(value):
            if not self.value(item, depth + 1, ", " if index else ""):
                return False
        return self._write("]")

    def _write(self, token):
        if len(self.text) >= DEBUG_LIMIT:
            return False
        self.text += token
        return True


def newline(depth):
    return "\n" + " " * (_INDENT * depth)


def quote(text):
    """Returns a JSON string; only what JSON demands is escaped."""
    return json.encoder.encode_basestring(text)


def _scalar(value):
    if isinstance(value, str):
        return quote(value)
    return json.dumps(value).replace("e+", "e")


def debug_string(value):
    """Returns the value as it appears in error texts: pretty, cut after some 256 characters."""
    printer = _LimitedPrinter()
    printer.value(value, depth=0)
    return printer.text


def error_body(message):
    """Returns the body of an error response, as bytes."""
    return f'{{\n    "error": {quote(message)}\n}}'.encode("utf-8", "surrogateescape")
