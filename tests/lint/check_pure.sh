#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The pure rooms call nothing but these: no file, clock, thread, or (format apart) memory.
# Looks at the archives of a build without sanitizers: check_pure.sh [BUILD]
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/test}
allowed='memcpy|memset|memcmp|memmove|memchr|strchr|strrchr|strstr|strspn|strlen|strcmp|strncmp|snprintf|vsnprintf|abort'
allowed="$allowed|__stack_chk_fail|__[a-z]*_chk|_GLOBAL_OFFSET_TABLE_"
status=0
look() { # ARCHIVE MORE-NAMES
	local archive=$build/libroom_$1.a names
	if [ ! -e "$archive" ]; then
		printf '%s is not built\n' "$archive"
		status=1
		return
	fi
	names=$(nm -u "$archive" | awk '$1 == "U" { print $2 }' | sort -u |
		grep -vE "^($allowed|$2)$" |
		grep -vxF -f <(nm --defined-only "$build"/libroom_base.a "$build"/libroom_proto.a "$archive" |
			awk 'NF == 3 { print $3 }'))
	if [ -n "$names" ]; then
		printf 'room %s calls what it may not: %s\n' "$1" "$(printf '%s' "$names" | tr '\n' ' ')"
		status=1
	fi
}
look base '-'
look proto 'msgpack_[a-z_]*'
look daemon_core '-'
look daemon_plan '-'
look daemon_format 'malloc|free|realloc|calloc|strtod|cJSON_[A-Za-z]*'
exit $status
