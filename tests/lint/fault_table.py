# SPDX-License-Identifier: Apache-2.0
"""Which fault case is covered by which test: docs/fault-coverage.md from tests/faults.toml and
the marks in the tests (@pytest.mark.fault("P01") in Python, /* fault: P01 */ in C). A case with
variants says so ("F33:short"): each of them has to be shown by a test.

Usage: fault_table.py          write the table
       fault_table.py --check  is it current, and is every case of now covered or waiting?
"""
import pathlib
import re
import subprocess
import sys

try:
    import tomllib
except ImportError:  # Python before 3.11
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "fault-coverage.md"
PYTHON = re.compile(r'@pytest\.mark\.fault\(([^)]*)\)')
C = re.compile(r"/\* fault: ([^*]*)\*/")
NAME_PYTHON = re.compile(r"def (test_\w+)")
NAME_C = re.compile(r"^static void (\w+)\(|^void (\w+)\(")


def marks():
    """id, also with its variant -> set of "file: test"."""
    found = {}
    files = subprocess.run(["git", "ls-files", "tests/*.py", "tests/*.c", "tests/*/*.c",
                            "tests/*/*.py"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split()
    for file in files:
        is_c = file.endswith(".c")
        waiting = []
        for line in (ROOT / file).read_text().splitlines():
            match = (C if is_c else PYTHON).search(line)
            if match:
                waiting += re.findall(r"[PDFMCGSXTU]\d\d(?::[\w.-]+)?", match.group(1))
            name = (NAME_C if is_c else NAME_PYTHON).search(line)
            if name and waiting:
                test = next(filter(None, name.groups()))
                for case in waiting:
                    for key in {case, case.partition(":")[0]}:
                        found.setdefault(key, set()).add(f"{file}: {test}")
                waiting = []
    return found


def main():
    cases = tomllib.loads((ROOT / "tests" / "faults.toml").read_text())
    reasons = cases.pop("waiting")
    found = marks()
    lines = ["# Fault coverage", "",
             "Made by `tests/lint/fault_table.py` from `tests/faults.toml` and the marks in the",
             "tests; do not edit. Each case is shown by the tests named, or waits for a later "
             "part.", "",
             "| id | what happens | shown by |", "|---|---|---|"]
    known = {f"{case}:{word}" for case in cases for word in cases[case].get("variants", ())}
    problems = [f"{case} is marked in a test and unknown"
                for case in sorted(set(found) - set(cases) - known)]
    problems += [f"{case} is shown by no test" for case in sorted(known - set(found))]
    for case, entry in sorted(cases.items()):
        tests = sorted(found.get(case, ()))
        if tests:
            shown = "<br>".join(f"`{test}`" for test in tests[:4])
            shown += f"<br>and {len(tests) - 4} more" if len(tests) > 4 else ""
        elif entry["issue"] != "now":
            shown = f"waits: {entry['issue']}"
        elif case in reasons:
            shown = f"waits: {reasons[case]}"
        else:
            shown = "**nothing**"
            problems.append(f"{case} is shown by no test: {entry['what']}")
        what = entry["what"].replace("|", "\\|")
        if "variants" in entry:
            shown = "<br>".join([f"{word}: {len(found.get(f'{case}:{word}', ()))}"
                                 for word in entry["variants"]] + [shown])
        lines.append(f"| {case} | {what} | {shown} |")
    text = "\n".join(lines) + "\n"
    if sys.argv[1:] == ["--check"]:
        if not TABLE.exists() or TABLE.read_text() != text:
            problems.append("docs/fault-coverage.md is old: run tests/lint/fault_table.py")
    else:
        TABLE.write_text(text)
    print("\n".join(problems))
    sys.exit(1 if problems else 0)


main()
