/* SPDX-License-Identifier: Apache-2.0 */
/* Histories of the core that a fuzzer writes; see tests/core/driver.h. */
#include "base/require.h"
#include "tests/core/driver.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct driver *driver = calloc(1, sizeof *driver);

	REQUIRE(driver != NULL);
	driver_run(driver, "fuzzed", 0, bytes, size);
	free(driver);
	return 0;
}
