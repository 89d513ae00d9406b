#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The generator refuses bad schemas, its output is current, and no promise was broken.

    tests/unit/proto/test_wiregen.py                 run the tests
    tests/unit/proto/test_wiregen.py --write-stable  take additions into stable.json

stable.json is what was promised: methods, fields, types, limits, codes, records. Taking away
or narrowing anything fails; an addition fails until it is written down.
"""

import copy
import json
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "proto"))
import wiregen  # noqa: E402

STABLE = HERE / "stable.json"
TEXT = wiregen.SCHEMA.read_text(encoding="utf-8")


def surface(schema):
    """What clients may rely on. Drafts promise nothing."""
    maps = {}

    def add(name, fields):
        if name in maps:
            return
        maps[name] = {field["name"]: {key: field[key] for key in
                                      ("type", "min", "max", "item_max", "optional")
                                      if key in field} for field in fields}
        for field in fields:
            base = wiregen.nested(field, schema["types"])
            if base:
                add(f"type {base}", schema["types"][base]["fields"])

    methods = {}
    for message in wiregen.for_clients(schema["message"]):
        if message.get("status") == "draft":
            continue
        methods[message["method"]] = {
            key: message[key] for key in ("role", "request_fds", "response_fds") if key in message}
        add(f"request {message['method']}", message["request"])
        add(f"response {message['method']}", message["response"])
    for event in schema["event"]:
        add(f"event {event['name']}", event["fields"])
    add("type error", schema["types"]["error"]["fields"])
    return {
        "packet": {key: schema["protocol"][key]
                   for key in ("packet_bytes", "fds_per_packet", "depth", "nodes", "keys")},
        "errors": {row["code"]: {key: row[key] for key in
                                 ("number", "exit", "retryable", "fatal") if key in row}
                   for row in schema["error"]},
        "methods": methods,
        "maps": maps,
        "records": {row["name"]: [[field["name"], field["type"]] for field in row["fields"]]
                    for row in schema["record"]},
        "dtypes": {row["name"]: [row[key] for key in ("number", "bits", "group") if key in row]
                   for row in schema["dtype"]},
    }


def broken_field(name, old, new, is_request, was_there):
    """What is wrong with one field now; 'old' is None for a new one."""
    if old is None:
        if was_there and not new.get("optional"):  # old peers do not send it
            yield f"{name}: a new field must be optional"
        return
    if new is None:
        yield f"{name}: is gone"
        return
    if old["type"] != new["type"]:
        yield f"{name}: was {old['type']}, is {new['type']}"
    for key in ("max", "item_max"):
        if new.get(key, wiregen.NUMBER_MAX) < old.get(key, wiregen.NUMBER_MAX):
            yield f"{name}: {key} was {old.get(key)}, is {new[key]}"
    if new.get("min", 0) > old.get("min", 0):
        yield f"{name}: min was {old.get('min', 0)}, is {new['min']}"
    if old.get("optional") and not new.get("optional"):
        yield f"{name}: was optional"
    if not is_request and new.get("optional") and not old.get("optional"):
        yield f"{name}: was always there"


def keeps(old, new):
    """The same, or descriptors in a wider range: peers that ask for nothing new see none of it."""
    ranges = [(old.get(key, [0, 0]), new.get(key, [0, 0])) for key in ("request_fds",
                                                                       "response_fds")]
    return old.get("role") == new.get("role") and all(
        after[0] <= before[0] and before[1] <= after[1] for before, after in ranges)


def broken(old, new):
    """Every promise in 'old' that 'new' does not keep."""
    for key, value in old["packet"].items():
        if new["packet"][key] < value:
            yield f"{key}: was {value}, is {new['packet'][key]}"
    for section in ("errors", "records", "dtypes"):
        for name, row in old[section].items():
            if new[section].get(name) != row:
                yield f"{section} {name}: was {row}, is {new[section].get(name)}"
    for name, row in old["methods"].items():
        if name not in new["methods"]:
            yield f"method {name}: is gone"
        elif not keeps(row, new["methods"][name]):
            yield f"method {name}: was {row}, is {new['methods'][name]}"
    for name in sorted(old["maps"].keys() | new["maps"].keys()):
        before, after = old["maps"].get(name), new["maps"].get(name)
        if after is None:
            yield f"{name}: is gone"
            continue
        # A type may stand in requests and in results: it keeps the promises of both.
        is_request = name.startswith("request ")
        for field in sorted((before or {}).keys() | after.keys()):
            yield from broken_field(f"{name}.{field}", (before or {}).get(field),
                                    after.get(field), is_request, before is not None)


class Refusals(unittest.TestCase):
    """Each bent schema is refused with a sentence that names the thing."""

    def refuse(self, old, new, *words):
        self.assertIn(old, TEXT)
        with self.assertRaises((wiregen.SchemaError, wiregen.tomllib.TOMLDecodeError)) as caught:
            wiregen.load(TEXT.replace(old, new, 1))
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_a_duplicate_method(self):
        self.refuse('method = "ping"', 'method = "hello"', "'hello' is there twice")

    def test_a_duplicate_field(self):
        self.refuse('{ name = "found", type = "bool"', '{ name = "x", type = "bool" }, '
                    '{ name = "x", type = "bool"', "'x' is there twice")

    def test_a_duplicate_key_of_the_file(self):
        self.refuse("version = 1\n", "version = 1\nversion = 1\n")

    def test_unordered_keys(self):
        self.refuse('number = 2\ncode = "version"', 'code = "version"\nnumber = 2', "order")

    def test_unordered_keys_of_a_field(self):
        self.refuse('{ name = "found", type = "bool"', '{ type = "bool", name = "found"', "order")

    def test_an_unknown_key(self):
        self.refuse('method = "ping"\n', 'method = "ping"\nsince = 1\n', "unknown key 'since'")

    def test_a_gap_in_the_numbers(self):
        self.refuse("number = 3\n", "number = 30\n", "number 30 where 3 comes next")

    def test_a_string_without_max(self):
        self.refuse('name = "server", type = "str", max = 128', 'name = "server", type = "str"',
                    "server", "'max'")

    def test_a_list_without_max(self):
        self.refuse('type = "list:place", max = 16', 'type = "list:place"', "where", "'max'")

    def test_a_list_of_strings_without_item_max(self):
        self.refuse(", item_max = 4200", "", "models", "'item_max'")

    def test_an_unknown_type(self):
        self.refuse('name = "found", type = "bool"', 'name = "found", type = "boo"', "'boo'")

    def test_a_list_of_lists(self):
        self.refuse('type = "list:place"', 'type = "list:list:place"', "unknown type")

    def test_a_field_of_the_envelope(self):
        self.refuse('name = "found"', 'name = "fds"', "'fds' belongs to the envelope")

    def test_a_type_that_contains_itself(self):
        self.refuse('{ name = "comm", type = "str", max = 64, doc = "command name or the label '
                    'it gave" }', '{ name = "comm", type = "holder" }', "holder", "itself")

    def test_too_many_fds(self):
        self.refuse("request_fds = [1, 32]", "request_fds = [1, 33]", "request_fds")

    def test_an_unknown_role(self):
        self.refuse('role = "admin"', 'role = "root"', "role")

    def test_an_unaligned_record(self):
        self.refuse('{ name = "layout", type = "u32", doc = "1" },', "", "multiple of 8")

    def test_a_gap_in_a_record(self):
        self.refuse('{ name = "rank", type = "u8" },', "", "multiple of 8")


class Output(unittest.TestCase):
    def test_generated_files_are_current(self):
        schema = wiregen.load(TEXT)
        template = wiregen.TEMPLATE.read_text(encoding="utf-8")
        for name, text in wiregen.make_all(schema, template).items():
            self.assertEqual((ROOT / name).read_text(encoding="utf-8"), text,
                             f"{name} is not current: run proto/wiregen.py")

    def test_python_tables_have_the_layout_of_c(self):
        import struct
        scope = {}
        exec(wiregen.make_py(wiregen.load(TEXT)), scope)  # noqa: S102
        self.assertEqual({name: struct.calcsize(layout)
                          for name, (layout, _) in scope["RECORDS"].items()},
                         {"table_header": 136, "table_shard": 72, "table_tensor": 40,
                          "table_block": 32})
        self.assertEqual(scope["ERRORS"]["no-memory"][:4], (14, True, False, 6))
        self.assertEqual(scope["DTYPES"][12], ("BF16", 16, 1))
        self.assertEqual(scope["METHODS"]["shutdown"], ("admin", False))


class Promises(unittest.TestCase):
    def setUp(self):
        self.new = surface(wiregen.load(TEXT))

    def test_nothing_promised_is_broken(self):
        old = json.loads(STABLE.read_text(encoding="utf-8"))
        self.assertEqual(list(broken(old, self.new)), [])
        self.assertEqual(old, self.new, "additions: run test_wiregen.py --write-stable")

    def assert_broken(self, change, word):
        bent = copy.deepcopy(self.new)
        change(bent)
        self.assertTrue(any(word in line for line in broken(self.new, bent)), word)

    def test_each_kind_of_break_is_found(self):
        load = "request load"
        self.assert_broken(lambda new: new["methods"].pop("ping"), "method ping: is gone")
        self.assert_broken(lambda new: new["methods"]["load"].update(role="admin"), "method load")
        self.assert_broken(lambda new: new["methods"]["load"].update(request_fds=[2, 32]),
                           "method load")
        self.assert_broken(lambda new: new["methods"]["attach"].pop("response_fds"),
                           "method attach")
        self.assert_broken(lambda new: new["maps"][load].pop("name"), "name: is gone")
        self.assert_broken(lambda new: new["maps"][load]["name"].update(max=511), "max was 512")
        self.assert_broken(lambda new: new["maps"][load]["name"].update(type="bool"), "was str")
        self.assert_broken(lambda new: new["maps"][load]["name"].pop("optional"), "was optional")
        self.assert_broken(lambda new: new["maps"][load].update(x={"type": "bool"}),
                           "load.x: a new field must be optional")
        self.assert_broken(lambda new: new["maps"][load]["virtual_vram"].update(max=5),
                           "max was None, is 5")
        self.assert_broken(lambda new: new["maps"]["type policy"]["priority"].update(min=0),
                           "min was -100")
        self.assert_broken(lambda new: new["maps"]["response cancel"]["found"].update(
            optional=True), "was always there")
        self.assert_broken(lambda new: new["errors"]["io"].update(number=99), "errors io")
        self.assert_broken(lambda new: new["records"]["table_block"].pop(), "table_block")
        self.assert_broken(lambda new: new["dtypes"].update(F32=[1, 32]), "dtypes F32")
        self.assert_broken(lambda new: new["packet"].update(nodes=10), "nodes: was 4096")

    def test_additions_are_no_break(self):
        more = copy.deepcopy(self.new)
        more["maps"]["request load"]["x"] = {"type": "bool", "optional": True}
        more["maps"]["response load"]["x"] = {"type": "bool", "optional": True}
        more["maps"]["request new"] = {"x": {"type": "bool"}}
        more["methods"]["new"] = {}
        more["maps"]["request load"]["name"]["max"] = 9999
        more["methods"]["show"]["response_fds"] = [0, 32]
        self.assertEqual(list(broken(self.new, more)), [])


def write_stable():
    new = surface(wiregen.load(TEXT))
    if STABLE.is_file():
        faults = list(broken(json.loads(STABLE.read_text(encoding="utf-8")), new))
        if faults:
            sys.exit("not written; promises would be broken:\n" + "\n".join(faults))
    STABLE.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--write-stable" in sys.argv[1:]:
        write_stable()
    else:
        unittest.main()
