# SPDX-License-Identifier: Apache-2.0
"""Add up a JUnit file: "passed failed skipped" on the first line, then the failed ones."""
import sys
import xml.etree.ElementTree as tree

passed = failed = skipped = 0
names = []
for case in tree.parse(sys.argv[1]).getroot().iter("testcase"):
    kinds = {child.tag for child in case}
    if "failure" in kinds or "error" in kinds or case.get("status") == "fail":
        failed += 1
        names.append(f"{case.get('classname', '')} {case.get('name')}")
    elif "skipped" in kinds or case.get("status") in ("notrun", "disabled"):
        skipped += 1
    else:
        passed += 1
if passed + failed + skipped == 0:
    sys.exit("no test in it")
print(passed, failed, skipped)
print("\n".join(names))
