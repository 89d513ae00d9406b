#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The structures that the Python binding declares lie as the C compiler lays out distorch.h.

usage: test_layout.py CC SOURCE_FOLDER
"""

import ctypes
import pathlib
import subprocess
import sys
import tempfile

compiler, root = sys.argv[1], pathlib.Path(sys.argv[2])
sys.path.insert(0, str(root / "client" / "python"))
from distorch import _library as lib  # noqa: E402


def structures():
    for value in vars(lib).values():
        if isinstance(value, type) and issubclass(value, ctypes.Structure):
            if value.__name__.startswith("distorch_"):
                yield value


def expected():
    lines = []
    for made in structures():
        lines.append(f"{made.__name__} {ctypes.sizeof(made)}")
        for name, *_ in made._fields_:
            field = getattr(made, name)
            lines.append(f"{made.__name__}.{name} {field.offset} {field.size}")
    return lines


def program():
    prints = []
    for made in structures():
        tag = f"struct {made.__name__}"
        prints.append(f'printf("{made.__name__} %zu\\n", sizeof({tag}));')
        for name, *_ in made._fields_:
            prints.append(f'printf("{made.__name__}.{name} %zu %zu\\n", offsetof({tag}, {name}), '
                          f"sizeof((({tag} *)0)->{name}));")
    return ("#include <stddef.h>\n#include <stdio.h>\n#include <distorch.h>\n"
            "int main(void)\n{\n" + "\n".join(prints) + "\nreturn 0;\n}\n")


with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder) / "layout.c"
    source.write_text(program())
    binary = pathlib.Path(folder) / "layout"
    subprocess.run([compiler, "-I", str(root / "client" / "include"), str(source), "-o",
                    str(binary)], check=True)
    found = subprocess.run([str(binary)], check=True, capture_output=True,
                           text=True).stdout.splitlines()

wanted = expected()
assert len(wanted) > 100, "the binding declares its structures elsewhere now"
differing = [f"C: {c}  Python: {p}" for c, p in zip(found, wanted) if c != p]
if differing or len(found) != len(wanted):
    print("\n".join(differing))
    sys.exit("the binding's structures are not those of distorch.h")
print(f"{len(wanted)} sizes and offsets agree")
