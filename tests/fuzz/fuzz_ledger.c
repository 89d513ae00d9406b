/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ledger that an earlier life, or nobody, left. Oracle: it is refused, or every record walked
 * carries its sum; walking ends; nothing is read outside of it (its size is sealed).
 */
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/ledger.h"

static void walk(struct ledger *ledger)
{
	struct ledger_lease lease;
	struct ledger_wish wish;
	uint32_t cursor = 0;
	uint32_t n_records = 0;
	uint8_t suspect[16];
	size_t size = 0;
	char *text = ledger_get_text(ledger, &size);

	/* What is given goes to its end; it may hold anything. */
	REQUIRE(text == NULL || (size > 0 && text[size] == '\0'));
	while (ledger_next_lease(ledger, &cursor, &lease)) {
		REQUIRE(lease.sum != 0 && ++n_records < 1U << 24);
	}
	cursor = 0;
	while (ledger_next_wish(ledger, &cursor, &wish)) {
		REQUIRE(wish.sum != 0 && ++n_records < 1U << 24);
	}
	(void)ledger_count_start(ledger);
	ledger_get_suspect(ledger, suspect);
	ledger_set_lease(ledger, 0, &lease);
	ledger_set_wish(ledger, 0, NULL);
	free(text);
	text = NULL;
	if (ledger_set_text(ledger, "text", 4)) {
		text = ledger_get_text(ledger, &size);
	}
	REQUIRE(text == NULL || size > 0);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct ledger *ledger = NULL;

	REQUIRE(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
	REQUIRE(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	if (ledger_open(fd, &ledger, NULL) == 0) {
		walk(ledger);
	}
	(void)ledger_free(ledger);
	(void)close(fd);
	return 0;
}
