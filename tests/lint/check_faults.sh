#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The table of fault cases is current, and no case of now is without a test.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
exec python3 "$root/tests/lint/fault_table.py" --check
