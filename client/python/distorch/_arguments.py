# SPDX-License-Identifier: Apache-2.0
"""Arguments of callers, judged and made into what the C library takes.

C would end the process at a NULL, cut a string at its NUL character and wrap a number, so
nothing goes there that was not looked at here. TypeError and ValueError name the argument.
"""

import ctypes
import numbers
import operator
import os

_LONGEST_MS = 2**63 - 1
_LONGEST_TIMEOUT_MS = 2**32 - 2  # one more means for ever
_LARGEST = 2**64 - 2  # one more means absent


def _wrong(name, wanted, value):
    return TypeError(f"{name} must be {wanted}, not {type(value).__name__}")


def callback(name, value):
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        raise _wrong(name, "callable or None", value)
    return value


def text(name, value):
    """A string or path that must be given, as bytes."""
    try:
        found = os.fsencode(value)
    except TypeError:
        raise _wrong(name, "a string or a path", value) from None
    if b"\0" in found:
        raise ValueError(f"{name} contains a NUL character: {value!r}")
    return found


def optional_text(name, value):
    return None if value is None else text(name, value)


def texts(name, value):
    """A C array of strings and its length. A single string or path is a list of that one."""
    if isinstance(value, (str, bytes, os.PathLike)):
        value = [value]
    try:
        given = list(value)
    except TypeError:
        raise _wrong(name, "a list of strings", value) from None
    items = [text(f"{name}[{i}]", item) for i, item in enumerate(given)]
    return (ctypes.c_char_p * len(items))(*items), len(items)


def blocks(name, value):
    """C arrays of the names and the bytes of blocks, and their length."""
    try:
        given = [(block, n_bytes) for block, n_bytes in value]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a list of (name, bytes)") from None
    names, count = texts(f"{name}.name", [block for block, _ in given])
    sizes = [size(f"{name}[{i}].bytes", n_bytes) for i, (_, n_bytes) in enumerate(given)]
    return names, (ctypes.c_uint64 * count)(*sizes), count


def model_texts(models):
    """The same for models that are given one by one."""
    for model in models:
        if isinstance(model, (list, tuple, set, frozenset)):
            raise TypeError(f"models are given one by one, not as a {type(model).__name__}: "
                            "put a * before it")
    return texts("models", models)


def flag(name, value):
    """True or False, or what equals one of them (1, numpy's); never a text."""
    if value not in (True, False):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def whole(name, value, least, most):
    try:
        found = operator.index(value)
    except TypeError:
        raise _wrong(name, "a whole number", value) from None
    if not least <= found <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {found}")
    return found


def size(name, value):
    return whole(name, value, 0, _LARGEST)


def ms(name, seconds, most=_LONGEST_MS):
    """Seconds in milliseconds; None is 0. More than nothing stays more than nothing."""
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
        raise _wrong(name, "a number of seconds", seconds)
    if not seconds >= 0:  # also what is no number
        raise ValueError(f"{name} must be 0 seconds or more, not {seconds}")
    if seconds * 1000 > most:
        raise ValueError(f"{name} must be at most {most // 1000} seconds, not {seconds}")
    return max(1, round(seconds * 1000)) if seconds > 0 else 0


def timeout_ms(seconds):
    return ms("timeout", seconds, _LONGEST_TIMEOUT_MS)


def wait_ms(name, seconds):
    """What is left until a deadline, which may have passed."""
    is_past = isinstance(seconds, numbers.Real) and seconds < 0
    return 0 if is_past else ms(name, seconds)
