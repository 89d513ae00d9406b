# SPDX-License-Identifier: Apache-2.0
"""Every source file names its licence in its first three lines, and no machine's path."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = (".c", ".h", ".py", ".js", ".cpp", ".cmake", ".toml", ".map", ".sh", ".txt")
FREE = ("tests/fuzz/corpus/", "tests/unit/proto/vectors", "tests/abi/symbols.txt",
        "tests/lint/waivers.txt", "client/python/pyproject.toml")
PATHS = re.compile(r"(^|[^A-Za-z0-9_.])/(work|root|farm)/")

names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                       check=True).stdout.split("\n")
findings = []
for name in filter(None, names):
    file = ROOT / name
    if name.startswith("tests/fuzz/corpus/") or not file.is_file():
        continue
    text = file.read_text(errors="replace")
    is_script = name.startswith(("scripts/", ".ci/"))
    if (name.endswith(KINDS) or is_script) and not name.startswith(FREE) \
            and not any("SPDX-License-Identifier: Apache-2.0" in line
                        for line in text.splitlines()[:3]):
        findings.append(f"{name}: no SPDX line in its first three lines")
    if name != "tests/lint/check_spdx.py" and PATHS.search(text):
        findings.append(f"{name}: the path of a machine")
print("\n".join(findings))
sys.exit(1 if findings else 0)
