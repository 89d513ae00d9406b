# SPDX-License-Identifier: Apache-2.0
"""The table of docs/allocation-strings.md, printed by test_cases. Usage: table.py [--check] TEST"""
import pathlib
import subprocess
import sys

PAGE = pathlib.Path(__file__).resolve().parents[4] / "docs/allocation-strings.md"
BEGIN = "<!-- table begins: tests/unit/daemon/plan/table.py writes it -->\n"
END = "<!-- table ends -->\n"

table = subprocess.run([sys.argv[-1], "--table"], capture_output=True, text=True,
                       check=True).stdout
old = PAGE.read_text()
before, rest = old.split(BEGIN)
new = before + BEGIN + "\n" + table + "\n" + END + rest.split(END)[1]
if sys.argv[1] == "--check":
    if new != old:
        sys.exit(f"{PAGE.name} is not what the test says: run {pathlib.Path(__file__).name}")
else:
    PAGE.write_text(new)
