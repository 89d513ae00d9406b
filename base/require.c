/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a program that found a fault in itself. See require.h. */
#include "base/require.h"

#include <stdlib.h>

unsigned long require_n_failed_checks;
void (*require_report)(const char *condition, const char *file, int line);

_Noreturn void require_failed(const char *condition, const char *file, int line)
{
	if (require_report != NULL) {
		require_report(condition, file, line);
	}
	abort();
}
