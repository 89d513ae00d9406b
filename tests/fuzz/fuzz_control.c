/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Z7: raw control bytes as a kernel would never write them. Oracle: a plain walk over the
 * same bytes, written independently, sees the same descriptors; those kept and those dropped
 * together are those received, each exactly once; over 32 none is kept. Each input lies in
 * memory of exactly its size, so that one byte read past the end is a finding.
 */
#include "base/os/fdpass.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_SEEN    4096
#define TYPE_RIGHTS 1
#define TYPE_PIDFD  4

static int dropped[MAX_SEEN];
static size_t n_dropped;

static void remember_drop(int fd)
{
	REQUIRE(n_dropped < MAX_SEEN);
	dropped[n_dropped++] = fd;
}

/* By the layout of cmsg(3): length, level, type, data, padding to eight bytes. */
static void walk(const uint8_t *bytes, size_t size, size_t *ret_n_rights, size_t *ret_n_pidfds)
{
	size_t at = 0;

	while (size - at >= 16) {
		uint64_t length;
		int32_t kind[2];
		uint64_t n_bytes;

		memcpy(&length, bytes + at, sizeof length);
		memcpy(kind, bytes + at + 8, sizeof kind);
		if (length < 16) {
			return;
		}
		n_bytes = (length > size - at ? size - at : length) - 16;
		if (kind[0] == SOL_SOCKET && kind[1] == TYPE_RIGHTS) {
			*ret_n_rights += n_bytes / sizeof(int);
		}
		if (kind[0] == SOL_SOCKET && kind[1] == TYPE_PIDFD) {
			*ret_n_pidfds += n_bytes / sizeof(int);
		}
		if (length > size - at || size - at - length < (8 - length % 8) % 8) {
			return;
		}
		at += length + (8 - length % 8) % 8;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	uint8_t *control = malloc(size == 0 ? 1 : size);
	int fds[FDPASS_MAX_FDS];
	size_t n_rights = 0;
	size_t n_pidfds = 0;
	int n_kept;

	REQUIRE(control != NULL);
	if (size > 0) {
		memcpy(control, bytes, size);
	}
	n_dropped = 0;
	walk(control, size, &n_rights, &n_pidfds);
	if (n_rights + n_pidfds <= MAX_SEEN) {
		n_kept = fdpass_collect(control, size, fds, remember_drop);
		REQUIRE(n_kept == (n_rights > FDPASS_MAX_FDS ? -1 : (int)n_rights));
		REQUIRE(n_dropped + (n_kept < 0 ? 0 : (size_t)n_kept) == n_rights + n_pidfds);
	}
	free(control);
	return 0;
}
