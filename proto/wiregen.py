#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the protocol's tables of proto/schema.toml (Python 3.11, nothing but its library).

    proto/wiregen.py             write the generated files
    proto/wiregen.py --check     write nothing; name what is not current and exit 1

The output is data: enumerations, structs, tables and a reference for people. The code that
walks the tables is proto/wire.c and proto/wire_encode.c, written by hand.
"""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python before 3.11
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "proto" / "schema.toml"
TEMPLATE = ROOT / "proto" / "protocol.md.in"

NUMBER_MAX = 2**63 - 1  # where a uint says no max: what every language can hold
FIELDS_MAX = 64  # of one map: the decoder notes what it saw in 64 bits
IMPLICIT = ("fds", "spill")  # keys that every params and result map may carry
C_NAMES = {"errno": "errno_"}  # a macro in C

# What each table of the schema may say, in this order; True: must be there.
KEYS = {
    "protocol": dict.fromkeys(
        ("version", "min", "packet_bytes", "fds_per_packet", "depth", "nodes", "keys",
         "spill_bytes", "spill_nodes", "unread_spill_bytes", "hello_ms", "drain_ms",
         "requests_in_flight", "output_bytes"), True),
    "error": {"number": True, "code": True, "retryable": False, "fatal": False, "exit": True,
              "text": True},
    "type": {"name": True, "doc": True, "fields": True},
    "field": {"name": True, "type": True, "min": False, "max": False, "item_max": False,
              "unit": False, "optional": False, "doc": False},
    "message": {"method": True, "status": False, "role": False, "request_fds": False,
                "response_fds": False, "doc": True, "request": True, "response": True},
    "event": {"name": True, "owned": False, "doc": True, "fields": True},
    "record": {"name": True, "doc": True, "fields": True},
    "record_field": {"name": True, "type": True, "doc": False},
    "dtype": {"number": True, "name": True, "bits": True, "group": False},
}
SECTIONS = ("protocol", "error", "type", "message", "event", "record", "dtype")
RECORD_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}


class SchemaError(Exception):
    """The schema says something that it may not say."""


def need(condition, where, text):
    if not condition:
        raise SchemaError(f"{where}: {text}")


def check_keys(kind, table, where):
    """Known keys, all required ones, in the one order."""
    known = KEYS[kind]
    for key in table:
        need(key in known, where, f"unknown key '{key}'")
    for key, is_required in known.items():
        need(key in table or not is_required, where, f"'{key}' is missing")
    need(list(table) == [key for key in known if key in table], where,
         "keys are not in the order " + ", ".join(known))


def check_unique(names, where):
    seen = set()
    for name in names:
        need(name not in seen, where, f"'{name}' is there twice")
        seen.add(name)


def check_numbers(rows, where):
    for want, row in enumerate(rows, 1):
        need(row["number"] == want, where, f"number {row['number']} where {want} comes next")


def check_field(field, types, where):
    check_keys("field", field, where)
    where = f"{where}.{field['name']}"
    need(re.fullmatch(r"[a-z][a-z0-9_]*", field["name"]), where, "not a lower-case name")
    base = field["type"].removeprefix("list:")
    is_list = base != field["type"]
    need(base in ("bool", "uint", "int", "str") or base in types, where,
         f"unknown type '{field['type']}'")
    need(not is_list or base not in ("bool", "int"), where, "lists hold uint, str or a type")
    need("max" in field or not (is_list or base in ("str", "int")), where, "needs 'max'")
    need("item_max" in field or not (is_list and base == "str"), where, "needs 'item_max'")
    need("item_max" not in field or is_list and base in ("str", "uint"), where,
         "'item_max' is for lists of strings or numbers")
    need("min" not in field or base == "int", where, "'min' is for int")
    need("max" not in field or is_list or base in ("str", "uint", "int"), where,
         "'max' has no meaning here")
    need(0 <= field.get("max", 0) <= NUMBER_MAX, where, "'max' is out of range")


def check_fields(fields, types, where):
    need(len(fields) <= FIELDS_MAX, where, f"more than {FIELDS_MAX} fields")
    for field in fields:
        check_field(field, types, where)
        need(field["name"] not in IMPLICIT, where, f"'{field['name']}' belongs to the envelope")
    check_unique((field["name"] for field in fields), where)


def check_record(record):
    """Natural alignment without gaps, so that the C struct needs no packing."""
    offset = 0
    for field in record["fields"]:
        where = f"record {record['name']}.{field['name']}"
        check_keys("record_field", field, where)
        size = record_size(field["type"], where)
        align = 1 if field["type"].startswith("bytes:") else size
        need(offset % align == 0, where, f"offset {offset} is not a multiple of {align}")
        offset += size
    need(offset % 8 == 0, f"record {record['name']}", f"{offset} bytes are no multiple of 8")
    check_unique((field["name"] for field in record["fields"]), f"record {record['name']}")


def record_size(kind, where):
    if kind.startswith("bytes:"):
        return int(kind.removeprefix("bytes:"))
    need(kind in RECORD_SIZES, where, f"unknown type '{kind}'")
    return RECORD_SIZES[kind]


def nested(field, types):
    """The [[type]] behind a field, or None."""
    base = field["type"].removeprefix("list:")
    return base if base in types else None


def type_order(types):
    """Types by value before those that contain them; a cycle is refused."""
    order, open_types = [], []

    def visit(name):
        need(name not in open_types, f"type {name}", "contains itself")
        if name in order:
            return
        open_types.append(name)
        for field in types[name]["fields"]:
            if nested(field, types):
                visit(nested(field, types))
        open_types.pop()
        order.append(name)

    for name in types:
        visit(name)
    return order


def type_depth(fields, types):
    """How many maps and lists lie in each other, this map included."""
    deepest = 0
    for field in fields:
        depth = int(field["type"].startswith("list:"))
        if nested(field, types):
            depth += type_depth(types[nested(field, types)]["fields"], types)
        deepest = max(deepest, depth)
    return 1 + deepest


def load(text):
    """The checked schema, with a dict 'types' by name and 'order' for C."""
    schema = tomllib.loads(text)
    for section in schema:
        need(section in SECTIONS, "schema", f"unknown section '{section}'")
    for section in SECTIONS:
        need(section in schema, "schema", f"section '{section}' is missing")
    check_keys("protocol", schema["protocol"], "protocol")
    named = {"error": "code", "type": "name", "message": "method", "event": "name",
             "record": "name", "dtype": "name"}
    for section, key in named.items():
        for row in schema[section]:
            check_keys(section, row, f"{section} {row.get(key, '?')}")
        check_unique((row[key] for row in schema[section]), section)
    check_numbers(schema["error"], "error")
    check_numbers(schema["dtype"], "dtype")
    types = {row["name"]: row for row in schema["type"]}
    schema["types"] = types
    for where, fields in all_maps(schema):
        check_fields(fields, types, where)
    schema["order"] = type_order(types)
    for where, fields in all_maps(schema):
        need(1 + type_depth(fields, types) <= schema["protocol"]["depth"], where,
             "is deeper than packets may be")
    for message in schema["message"]:
        where = f"message {message['method']}"
        need(message.get("status", "stable") in ("stable", "draft"), where, "unknown status")
        need(message.get("role", "any") in ("none", "any", "admin", "worker"), where,
             "unknown role")
        for key in ("request_fds", "response_fds"):
            least, most = message.get(key, [0, 0])
            need(0 <= least <= most <= schema["protocol"]["fds_per_packet"], where, f"bad {key}")
    for record in schema["record"]:
        check_record(record)
    return schema


def for_clients(messages):
    """Without those that the daemon and its workers say to each other."""
    return [row for row in messages if row.get("role") != "worker"]


def c_name(name):
    return C_NAMES.get(name, name.replace(".", "_").replace("-", "_"))


def upper(name):
    return name.replace(".", "_").replace("-", "_").upper()


def all_maps(schema):
    """(C name without wire_, fields) of every map on the wire; types first, C's order."""
    order = schema.get("order", schema["types"])
    maps = [(name, schema["types"][name]["fields"]) for name in order]
    for message in schema["message"]:
        maps.append((c_name(message["method"]) + "_request", message["request"]))
        maps.append((c_name(message["method"]) + "_response", message["response"]))
    for event in schema["event"]:
        maps.append((c_name(event["name"]) + "_event", event["fields"]))
    return maps


def c_string(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def banner(comment, doc):
    head = f"Generated by proto/wiregen.py from proto/schema.toml; do not edit. {doc}"
    if comment == "#":
        return f"# SPDX-License-Identifier: Apache-2.0\n# {head}\n"
    return f"/* SPDX-License-Identifier: Apache-2.0 */\n/* {head} */\n/* clang-format off */\n"


def enum(name, rows):
    lines = [f"enum {name} {{"]
    lines += [f"\t{key} = {value}," for key, value in rows]
    return "\n".join(lines + ["};"])


def make_code_h(schema):
    codes = [("WIRE_OK", 0)]
    codes += [("WIRE_" + upper(row["code"]), row["number"]) for row in schema["error"]]
    dtypes = [("WIRE_DTYPE_" + row["name"], row["number"]) for row in schema["dtype"]]
    listed = [f"\tX({row['number']}, {row['name']}, {row['bits']}, {row.get('group', 1)})"
              for row in schema["dtype"]]
    return "\n".join([
        banner("/*", "Codes and dtypes."),
        "#ifndef PROTO_GEN_WIRE_CODE_H", "#define PROTO_GEN_WIRE_CODE_H", "",
        "/* What went wrong; functions return the negative of it. */", enum("wire_code", codes),
        f"#define WIRE_N_CODES {len(codes)}", "",
        "/* An element's type, as tables number it; 0 is none. */", enum("wire_dtype", dtypes), "",
        "/* X(number, NAME, bits of one group, elements of a group) */",
        "#define WIRE_DTYPES(X) \\\n" + " \\\n".join(listed), "", "#endif", ""])


def make_method_h(schema):
    methods = [("WIRE_METHOD_" + upper(row["method"]), number)
               for number, row in enumerate(schema["message"])]
    events = [("WIRE_EVENT_" + upper(row["name"]), number)
              for number, row in enumerate(schema["event"])]
    return "\n".join([
        banner("/*", "Methods and events."),
        "#ifndef PROTO_GEN_WIRE_METHOD_H", "#define PROTO_GEN_WIRE_METHOD_H", "",
        enum("wire_method", methods), f"#define WIRE_N_METHODS {len(methods)}", "",
        enum("wire_event", events), f"#define WIRE_N_EVENTS {len(events)}", "", "#endif", ""])


def member(field, types):
    if field["type"].startswith("list:"):
        kind = "struct wire_list "
    elif field["type"] in types:
        kind = f"struct wire_{field['type']} "
    else:
        kind = {"bool": "bool ", "uint": "uint64_t ", "int": "int64_t ",
                "str": "struct wire_str "}[field["type"]]
    note = f" /* {field['type']} */" if field["type"].startswith("list:") else ""
    return f"\t{kind}{c_name(field['name'])};{note}"


def struct(name, fields, types):
    lines = [f"struct wire_{name} {{"]
    lines += [f"\tbool has_{field['name']};" for field in fields if field.get("optional")]
    lines += [member(field, types) for field in fields]
    if not fields:
        lines.append("\tuint8_t unused; /* nothing to say */")
    lines.append("};")
    for field in fields:
        if field["type"] == "str" or field["type"].startswith("list:"):
            lines.append(f"#define WIRE_{upper(name)}_{upper(field['name'])}_MAX {field['max']}")
    return "\n".join(lines) + "\n"


def record_struct(record):
    c_types = {"u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t",
               "i64": "int64_t"}
    lines, asserts, offset = [f"/* {record['doc']} */", f"struct {record['name']} {{"], [], 0
    for field in record["fields"]:
        if field["type"].startswith("bytes:"):
            lines.append(f"\tuint8_t {field['name']}[{record_size(field['type'], '')}];")
        else:
            lines.append(f"\t{c_types[field['type']]} {field['name']};")
        asserts.append(f"_Static_assert(offsetof(struct {record['name']}, {field['name']}) == "
                       f'{offset}, "layout");')
        offset += record_size(field["type"], "")
    asserts.append(f'_Static_assert(sizeof(struct {record["name"]}) == {offset}, "layout");')
    return "\n".join(lines + ["};"] + asserts) + "\n"


def make_gen_h(schema):
    limits = []
    for key, value in schema["protocol"].items():
        name = {"version": "PROTOCOL_VERSION", "min": "PROTOCOL_MIN"}.get(key, upper(key))
        limits.append(f"#define WIRE_{name} {value}")
    maps = all_maps(schema)
    return "\n".join([
        banner("/*", "Structs, limits and tables."),
        "#ifndef PROTO_GEN_WIRE_GEN_H", "#define PROTO_GEN_WIRE_GEN_H", "",
        "#include <stdbool.h>", "#include <stddef.h>", "#include <stdint.h>", "",
        '#include "proto/wire.h"', '#include "proto/wire_type.h"', "", *limits, "",
        "/* ---- maps on the wire; has_x says whether an optional x is there ---- */", "",
        *(struct(name, fields, schema["types"]) for name, fields in maps),
        "/* Room for any of them. */", "union wire_body {",
        *(f"\tstruct wire_{name} {name};" for name, fields in maps), "};", "",
        *(f"extern const struct wire_type wire_type_{name};" for name, fields in maps), "",
        "extern const struct wire_message wire_messages[WIRE_N_METHODS]; /* by enum wire_method */",
        "extern const uint8_t wire_messages_sorted[WIRE_N_METHODS]; /* numbers, by name */",
        "extern const struct wire_event_type wire_events[WIRE_N_EVENTS]; /* by enum wire_event */",
        "extern const struct wire_code_info wire_codes[WIRE_N_CODES]; /* by enum wire_code */", "",
        "/* ---- the table memfd, little-endian ---- */", "",
        '_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tables are little-endian");',
        "", *(record_struct(record) for record in schema["record"]), "#endif", ""])


def field_row(name, field, types):
    base = field["type"].removeprefix("list:")
    is_list = base != field["type"]
    kind = "WIRE_KIND_MAP" if base in types else "WIRE_KIND_" + base.upper()
    row = [f".name = {c_string(field['name'])}", f".name_size = {len(field['name'])}",
           f".kind = {kind}", f".offset = offsetof(struct wire_{name}, {c_name(field['name'])})"]
    if is_list:
        row.append(".is_list = true")
    if field.get("optional"):
        row.append(".is_optional = true")
        row.append(f".has_offset = offsetof(struct wire_{name}, has_{field['name']})")
    largest = field.get("max", NUMBER_MAX if base == "uint" and not is_list else 0)
    if largest:
        row.append(f".max = {largest}u")
    item_max = field.get("item_max", NUMBER_MAX if base == "uint" else 0)
    if is_list and item_max:
        row.append(f".item_max = {item_max}u")
    if "min" in field:
        row.append(f".min = {field['min']}")
    if base in types:
        row.append(f".type = &wire_type_{base}")
    return "\t{ " + ", ".join(row) + " },"


def type_table(name, fields, types):
    lines = []
    if fields:
        lines.append(f"static const struct wire_field {name}_fields[] = {{")
        lines += [field_row(name, field, types) for field in fields]
        lines.append("};")
    required = sum(1 << bit for bit, field in enumerate(fields) if not field.get("optional"))
    lines += [f"const struct wire_type wire_type_{name} = {{",
              f"\t.name = {c_string(name)}, .size = sizeof(struct wire_{name}),"]
    if fields:
        lines.append(f"\t.fields = {name}_fields, .n_fields = {len(fields)}, "
                     f".required = {required:#x}u,")
    return "\n".join(lines + ["};"]) + "\n"


def message_row(message, number):
    name = c_name(message["method"])
    request_fds = message.get("request_fds", [0, 0])
    response_fds = message.get("response_fds", [0, 0])
    row = [f".method = {c_string(message['method'])}", f".number = {number}",
           f".role = WIRE_ROLE_{message.get('role', 'any').upper()}"]
    if message.get("status") == "draft":
        row.append(".is_draft = true")
    row += [f".request_fds_min = {request_fds[0]}, .request_fds_max = {request_fds[1]}",
            f".response_fds_min = {response_fds[0]}, .response_fds_max = {response_fds[1]}",
            f".request = &wire_type_{name}_request", f".response = &wire_type_{name}_response"]
    return "\t{ " + ", ".join(row) + " },"


def event_row(event, number):
    owned = ", .is_owned = true" if event.get("owned") else ""
    return (f"\t{{ .name = {c_string(event['name'])}, .number = {number}{owned}, "
            f".fields = &wire_type_{c_name(event['name'])}_event }},")


def code_row(error):
    row = [f".word = {c_string(error['code'])}", f".text = {c_string(error['text'])}",
           f".exit_code = {error['exit']}"]
    row += [f".is_{key} = true" for key in ("retryable", "fatal") if error.get(key)]
    return "\t{ " + ", ".join(row) + " },"


def make_gen_c(schema):
    messages = schema["message"]
    by_name = sorted(range(len(messages)), key=lambda number: messages[number]["method"])
    return "\n".join([
        banner("/*", "The tables that proto/wire.c walks."),
        '#include "proto/gen/wire_gen.h"', "",
        *(type_table(name, fields, schema["types"]) for name, fields in all_maps(schema)),
        "const struct wire_message wire_messages[WIRE_N_METHODS] = {",
        *(message_row(row, number) for number, row in enumerate(messages)), "};", "",
        "const uint8_t wire_messages_sorted[WIRE_N_METHODS] = {",
        "\t" + ", ".join(str(number) for number in by_name) + ",", "};", "",
        "const struct wire_event_type wire_events[WIRE_N_EVENTS] = {",
        *(event_row(row, number) for number, row in enumerate(schema["event"])), "};", "",
        "const struct wire_code_info wire_codes[WIRE_N_CODES] = {",
        '\t{ .word = "ok", .text = "It worked." },',
        *(code_row(row) for row in schema["error"]), "};", ""])


def make_py(schema):
    formats = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
    lines = [banner("#", "Codes, methods and the table's layout."),
             "# ruff: noqa",
             f"PROTOCOL_VERSION = {schema['protocol']['version']}",
             f"PROTOCOL_MIN = {schema['protocol']['min']}",
             "LIMITS = {"]
    lines += [f"    {key!r}: {value}," for key, value in schema["protocol"].items()
              if key not in ("version", "min")]
    lines += ["}", "", "# word: (number, retryable, fatal, exit code, text)", "ERRORS = {"]
    lines += [f"    {row['code']!r}: ({row['number']}, {row.get('retryable', False)}, "
              f"{row.get('fatal', False)}, {row['exit']}, {row['text']!r})," for row in schema["error"]]
    lines += ["}", "", "# method: (role, is draft)", "METHODS = {"]
    lines += [f"    {row['method']!r}: ({row.get('role', 'any')!r}, "
              f"{row.get('status') == 'draft'})," for row in for_clients(schema["message"])]
    lines += ["}", "", "EVENTS = ("]
    lines += [f"    {row['name']!r}," for row in schema["event"]]
    lines += [")", "", "# The table memfd: struct formats and the names of their fields.",
              "RECORDS = {"]
    for record in schema["record"]:
        layout = "<" + "".join(
            f"{record_size(field['type'], '')}s" if field["type"].startswith("bytes:")
            else formats[field["type"]] for field in record["fields"])
        names = ", ".join(repr(field["name"]) for field in record["fields"])
        lines += [f"    {record['name']!r}: (", f"        {layout!r},", f"        ({names}),",
                  "    ),"]
    lines += ["}", "", "# number: (name, bits of one group, elements of a group)", "DTYPES = {"]
    lines += [f"    {row['number']}: ({row['name']!r}, {row['bits']}, {row.get('group', 1)}),"
              for row in schema["dtype"]]
    return "\n".join(lines + ["}", ""])


def md_fields(fields):
    if not fields:
        return ["(no fields)", ""]
    lines = ["| field | type | limit | | |", "|---|---|---|---|---|"]
    for field in fields:
        limits = []
        if "max" in field:
            low = f"{field['min']:,} to " if "min" in field else "≤ "
            what = " items" if field["type"].startswith("list:") else \
                " bytes" if field["type"] == "str" else ""
            limits.append(f"{low}{field['max']:,}{what}")
        if "item_max" in field:
            what = " bytes" if field["type"] == "list:str" else ""
            limits.append(f"each ≤ {field['item_max']:,}{what}")
        unit = f"[{field['unit']}] " if "unit" in field else ""
        lines.append(f"| `{field['name']}` | {field['type']} | {', '.join(limits)} | "
                     f"{'optional' if field.get('optional') else 'required'} | "
                     f"{unit}{field.get('doc', '')} |")
    return lines + [""]


def md_fds(count):
    least, most = count
    return str(least) if least == most else f"{least} to {most}"


def md_messages(messages):
    lines = []
    for message in messages:
        role = {"none": "anybody, once, before anything else", "any": "anybody",
                "admin": "admins only"}[message.get("role", "any")]
        state = "**draft: answers `unsupported`.** " if message.get("status") == "draft" else ""
        lines += [f"### `{message['method']}`", "", f"{state}{message['doc']} Who: {role}. "
                  f"Descriptors: {md_fds(message.get('request_fds', [0, 0]))} with the request, "
                  f"{md_fds(message.get('response_fds', [0, 0]))} with the response.", "",
                  "Params:", "", *md_fields(message["request"]),
                  "Result:", "", *md_fields(message["response"])]
    return lines


def md_records(records):
    lines = []
    for record in records:
        lines += [f"### `{record['name']}`", "", record["doc"], "",
                  "| offset | size | type | field | |", "|---|---|---|---|---|"]
        offset = 0
        for field in record["fields"]:
            size = record_size(field["type"], "")
            lines.append(f"| {offset} | {size} | {field['type']} | `{field['name']}` | "
                         f"{field.get('doc', '')} |")
            offset += size
        lines += [f"| {offset} | | | | end |", ""]
    return lines


def make_md(schema, template):
    protocol = schema["protocol"]
    parts = {
        "errors": ["| number | code | retry | ends the connection | exit code of distorchctl | |",
                   "|---|---|---|---|---|---|"] + [
            f"| {row['number']} | `{row['code']}` | {'yes' if row.get('retryable') else ''} | "
            f"{'yes' if row.get('fatal') else ''} | {row['exit']} | {row['text']} |"
            for row in schema["error"]],
        "methods": md_messages(for_clients(schema["message"])),
        "types": [line for row in schema["type"] if not row["name"].startswith("worker_")
                  for line in
                  [f"### `{row['name']}`", "", row["doc"], "", *md_fields(row["fields"])]],
        "events": [line for row in schema["event"] for line in
                   [f"### `{row['name']}`", "",
                    row["doc"] + (" Never dropped." if row.get("owned") else ""), "",
                    *md_fields(row["fields"])]],
        "records": md_records(schema["record"]),
        "dtypes": ["| number | name | bits | group |", "|---|---|---|---|"] + [
            f"| {row['number']} | {row['name']} | {row['bits']} | {row.get('group', 1)} |"
            for row in schema["dtype"]],
    }

    def fill(match):
        key = match.group(1)
        if key in parts:
            return "\n".join(parts[key]).strip()
        need(key in protocol, "protocol.md.in", f"unknown word @{key}@")
        return f"{protocol[key]:,}"

    return re.sub(r"@([a-z_]+)@", fill, template)


def make_all(schema, template):
    return {
        "proto/gen/wire_code.h": make_code_h(schema),
        "proto/gen/wire_method.h": make_method_h(schema),
        "proto/gen/wire_gen.h": make_gen_h(schema),
        "proto/gen/wire_gen.c": make_gen_c(schema),
        "client/python/distorch/_wire.py": make_py(schema),
        "docs/protocol.md": make_md(schema, template),
    }


def main():
    try:
        schema = load(SCHEMA.read_text(encoding="utf-8"))
        files = make_all(schema, TEMPLATE.read_text(encoding="utf-8"))
    except SchemaError as error:
        print(f"wiregen: {error}", file=sys.stderr)
        return 1
    stale = 0
    for name, text in files.items():
        path = ROOT / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv[1:]:
            print(f"wiregen: {name} is not current; run proto/wiregen.py", file=sys.stderr)
            stale = 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")
    return stale


if __name__ == "__main__":
    sys.exit(main())
