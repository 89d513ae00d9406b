#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden packets: the PyPI package msgpack packs what proto/schema.toml describes.

    tests/unit/proto/vectors.py            write vectors.txt beside this file
    tests/unit/proto/vectors.py --check    compare only; exit 1 when it differs

One line a packet: kind, method or event, form, hex. 'minimal' has the required fields with
the smallest values; 'maximal' has all fields, numbers at their largest, strings of several
scripts, lists with items. Exit 77 (skipped) where msgpack is not installed.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "proto"))
sys.dont_write_bytecode = True
import wiregen  # noqa: E402

TEXT = "Ünïcode-模型-🙂-plain-ascii-text-that-is-longer"


def value(field, types, is_maximal):
    base = field["type"].removeprefix("list:")
    if base != field["type"]:
        count = min(field["max"], 3) if is_maximal else 0
        item = {"name": field["name"], "type": base}
        if "item_max" in field:
            item["max"] = field["item_max"]
        return [value(item, types, is_maximal) for _ in range(count)]
    if base in types:
        return body(types[base]["fields"], types, is_maximal)
    if base == "bool":
        return is_maximal
    if base == "uint":
        return field.get("max", wiregen.NUMBER_MAX) if is_maximal else 0
    if base == "int":
        return field["max"] if is_maximal else field["min"]
    return TEXT.encode()[: field["max"]].decode(errors="ignore") if is_maximal else ""


def body(fields, types, is_maximal):
    return {field["name"]: value(field, types, is_maximal) for field in fields
            if is_maximal or not field.get("optional")}


def packets(schema):
    types = schema["types"]
    for is_maximal in (False, True):
        form = "maximal" if is_maximal else "minimal"
        number = 2**32 - 1 if is_maximal else 0
        for message in schema["message"]:
            name = message["method"]
            yield ("request", name, form,
                   [0, number, name, body(message["request"], types, is_maximal)])
            yield ("response", name, form,
                   [1, number, None, body(message["response"], types, is_maximal)])
        error = body(types["error"]["fields"], types, is_maximal)
        yield "error", "error", form, [1, number, error, None]
        for event in schema["event"]:
            yield ("event", event["name"], form,
                   [2, event["name"], body(event["fields"], types, is_maximal)])


def main():
    try:
        import msgpack
    except ImportError:
        print("skipped: the Python package msgpack is not installed")
        return 77
    schema = wiregen.load(wiregen.SCHEMA.read_text(encoding="utf-8"))
    lines = [f"{kind} {name} {form} {msgpack.packb(packet).hex()}\n"
             for kind, name, form, packet in packets(schema)]
    path = HERE / "vectors.txt"
    text = "# Made by vectors.py; do not edit.\n" + "".join(lines)
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
        return 0
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        print("vectors.txt is not current; run tests/unit/proto/vectors.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
