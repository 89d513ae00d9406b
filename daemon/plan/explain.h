/* SPDX-License-Identifier: Apache-2.0 */
/* A plan in words: for tables, answers and logs. Pure; any thread. */
#ifndef PLAN_EXPLAIN_H
#define PLAN_EXPLAIN_H

#include <stddef.h>

#include "daemon/plan/plan.h"

/* One sentence. Returns 'buffer'. */
const char *explain_warning(const struct plan_request *request, const struct plan_summary *summary,
			    const struct plan_warning *warning, char *buffer, size_t buffer_size);

/* A size that somebody types, never less than it is: "18.41G". Returns 'buffer'. */
const char *explain_least(uint64_t bytes, char *buffer, size_t buffer_size);

#endif
