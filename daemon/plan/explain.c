/* SPDX-License-Identifier: Apache-2.0 */
/* Warnings in words. See explain.h. */
#include "daemon/plan/explain.h"

#include "base/units.h"

#include <stdio.h>

#include "daemon/plan/name.h"
#include "daemon/plan/spec.h"

const char *explain_least(uint64_t bytes, char *buffer, size_t buffer_size)
{
	uint64_t whole = bytes >> 30;
	uint64_t rest = (bytes & ((1ULL << 30) - 1)) * 100;
	uint64_t hundredths = (rest >> 30) + ((rest & ((1ULL << 30) - 1)) != 0);

	(void)snprintf(buffer, buffer_size, "%llu.%02lluG",
		       (unsigned long long)(whole + hundredths / 100),
		       (unsigned long long)(hundredths % 100));
	return buffer;
}

static void print_tight(const struct plan_summary *summary, const struct plan_warning *warning,
			const char *label, char *buffer, size_t buffer_size)
{
	char used[24];
	char total[24];
	char least[32];

	(void)units_format_size(warning->a, used, sizeof used);
	(void)units_format_size(warning->b, total, sizeof total);
	if (summary->virtual_vram == 0) {
		(void)snprintf(buffer, buffer_size,
			       "%s of %s of %s are in use then: over 90 %%, and little is left to "
			       "compute",
			       used, total, label);
	} else {
		(void)snprintf(buffer, buffer_size,
			       "%s of %s of %s are in use then: over 90 %%; the least virtual VRAM "
			       "that is enough is %s",
			       used, total, label,
			       explain_least(summary->virtual_vram, least, sizeof least));
	}
}

/* What of the virtual VRAM that was asked for is not to be had. */
static void print_virtual(const struct plan_warning *warning, const char *label, char *buffer,
			  size_t buffer_size)
{
	char has[24];
	char asked[24];

	(void)units_format_size(warning->a, has, sizeof has);
	(void)units_format_size(warning->b, asked, sizeof asked);
	if (warning->kind == PLAN_SHORT_DONORS) {
		(void)snprintf(buffer, buffer_size,
			       "the donors take %s of the %s that were to live off %s", has, asked,
			       label);
	} else if (warning->kind == PLAN_SHORT_BLOCKS) {
		(void)snprintf(buffer, buffer_size,
			       "only %s of the %s that were to live off %s do: blocks move whole, "
			       "and what is left is too little for another",
			       has, asked, label);
	} else {
		(void)snprintf(buffer, buffer_size,
			       "%s computes: virtual VRAM means nothing there, all of it stays",
			       label);
	}
}

const char *explain_warning(const struct plan_request *request, const struct plan_summary *summary,
			    const struct plan_warning *warning, char *buffer, size_t buffer_size)
{
	char label[PLAN_LABEL_SIZE];
	char a[24];
	char b[24];
	char over[24];

	(void)name_label(&request->devices[warning->device], label, sizeof label);
	(void)units_format_size(warning->a, a, sizeof a);
	(void)units_format_size(warning->b, b, sizeof b);
	switch (warning->kind) {
	case PLAN_OVER_WILDCARD:
		(void)snprintf(buffer, buffer_size,
			       "the rest on %s is %s, more than the %s at its *", label, a, b);
		break;
	case PLAN_REST_ON_HOST:
		(void)snprintf(buffer, buffer_size,
			       "%s takes the rest, %s, and not the %s that are written: no item "
			       "has a *",
			       label, a, b);
		break;
	case PLAN_CLAMPED:
		(void)snprintf(buffer, buffer_size,
			       "%s takes less than its fraction of %s: only %s can be had", label,
			       b, a);
		break;
	case PLAN_HEAD_OVER:
		(void)units_format_size(warning->a - warning->b, over, sizeof over);
		(void)snprintf(buffer, buffer_size,
			       "the head, %s, stays on %s and is %s more than its share of %s", a,
			       label, over, b);
		break;
	case PLAN_SHORT_DONORS:
	case PLAN_SHORT_BLOCKS:
	case PLAN_NOTHING_OFF:
		print_virtual(warning, label, buffer, buffer_size);
		break;
	case PLAN_TIGHT:
		print_tight(summary, warning, label, buffer, buffer_size);
		break;
	case PLAN_SLOW_DONOR:
		(void)snprintf(buffer, buffer_size,
			       "%s has no peer access to where the model computes: its %s go "
			       "through ram, slower than from there",
			       label, a);
		break;
	case PLAN_NOT_SPREAD:
		(void)snprintf(buffer, buffer_size,
			       "the blocks are too unequal to be spread within the limits: they "
			       "lie one device behind the other");
		break;
	case PLAN_NOT_NAMED:
		(void)snprintf(buffer, buffer_size,
			       "the allocation does not name %s: it goes to %s",
			       spec_component_text((uint32_t)warning->a), label);
		break;
	case PLAN_EVICTS:
		(void)snprintf(buffer, buffer_size,
			       "for it at least %s of models that nobody uses are evicted from %s",
			       a, label);
		break;
	}
	return buffer;
}
