# SPDX-License-Identifier: Apache-2.0
"""Add up a JUnit file: "passed failed skipped" on the first line, then the failed ones, each with
what it said: often all that is left of a failure on another machine."""
import re
import sys
import xml.etree.ElementTree as tree

MAX_WHY = 400
TELLS = re.compile(r"\[  (ERROR|FAILED)  |Sanitizer|: error: |timed out|assert", re.IGNORECASE)


def why(case):
    """What a failed test said, on one line."""
    for child in case:  # pytest's
        if child.tag in ("failure", "error") and child.get("message"):
            return child.get("message")
    lines = (case.findtext("system-out") or "").splitlines()  # ctest's
    return " | ".join([line for line in lines if TELLS.search(line)] or lines[-3:])


passed = failed = skipped = 0
names = []
for case in tree.parse(sys.argv[1]).getroot().iter("testcase"):
    kinds = {child.tag for child in case}
    if "failure" in kinds or "error" in kinds or case.get("status") == "fail":
        failed += 1
        names.append(f"{case.get('classname', '')} {case.get('name')}: "
                     + " ".join(why(case).split())[:MAX_WHY])
    elif "skipped" in kinds or case.get("status") in ("notrun", "disabled"):
        skipped += 1
    else:
        passed += 1
if passed + failed + skipped == 0:
    sys.exit("no test in it")
print(passed, failed, skipped)
print("\n".join(names))
