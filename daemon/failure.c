/* SPDX-License-Identifier: Apache-2.0 */
/* Refusals in words. See failure.h. */
#include "daemon/failure.h"

#include "base/err.h"
#include "base/units.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "daemon/core/core.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "proto/wire.h"

void sentence_add(struct sentence *sentence, const char *format, ...)
{
	size_t room = sentence->capacity - sentence->size;
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(sentence->text + sentence->size, room, format, arguments);
	va_end(arguments);
	if (size < 0 || (size_t)size >= room) {
		sentence->text[sentence->size] = '\0';
		return;
	}
	sentence->size += (size_t)size;
}

void failure_set(struct failure *failure, enum wire_code code, const char *format, ...)
{
	const struct wire_code_info *info = wire_code_info(code);
	va_list arguments;

	memset(&failure->wire, 0, sizeof failure->wire);
	va_start(arguments, format);
	(void)vsnprintf(failure->message, sizeof failure->message, format, arguments);
	va_end(arguments);
	failure->wire.code = wire_str(info->word);
	failure->wire.message = wire_str(failure->message);
	failure->wire.retryable = info->is_retryable;
}

void failure_set_hint(struct failure *failure, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(failure->hint, sizeof failure->hint, format, arguments);
	va_end(arguments);
	failure->wire.has_hint = true;
	failure->wire.hint = wire_str(failure->hint);
}

void failure_set_field(struct failure *failure, const char *field)
{
	(void)snprintf(failure->field, sizeof failure->field, "%s", field);
	failure->wire.has_detail = true;
	failure->wire.detail.has_field = true;
	failure->wire.detail.field = wire_str(failure->field);
}

static void hint_for_code(struct failure *failure, enum wire_code code)
{
	switch ((int)code) {
	case WIRE_BAD_FILE:
		failure_set_hint(failure,
				 "download the file again, or check it where it came from");
		break;
	case WIRE_CHANGED_WHILE_READING:
		failure_set_hint(
			failure,
			"wait until whatever writes the file has ended, then load it again");
		break;
	case WIRE_TIMEOUT:
		failure_set_hint(
			failure,
			"the disk or network share does not answer; check it, then load again");
		break;
	case WIRE_NOT_RESIDENT:
		failure_set_hint(failure, "load it first: distorchctl load FILE");
		break;
	case WIRE_STALE:
		failure_set_hint(failure, "load it again: distorchctl load FILE");
		break;
	case WIRE_TOO_MANY:
		failure_set_hint(failure, "unload or disconnect something first, then try again");
		break;
	case WIRE_SHUTTING_DOWN:
		failure_set_hint(failure, "wait until distorchd runs again, then try again");
		break;
	default:
		break;
	}
}

void failure_set_not_resident(struct failure *failure, const char *name)
{
	failure_set(failure, WIRE_NOT_RESIDENT, "%s is known but not in memory", name);
	hint_for_code(failure, WIRE_NOT_RESIDENT);
}

void failure_set_no_device(struct failure *failure, const struct daemon *daemon,
			   struct wire_str name, const char *field)
{
	char wanted[65];
	char there[256] = "";
	char device[16];
	struct sentence sentence = {.text = there, .capacity = sizeof there};

	for (uint32_t i = 0; i < daemon->n_devices; i++) {
		sentence_add(&sentence, "%s%s", i == 0 ? "" : ", ",
			     describe_device_name(i, device));
	}
	failure_set(failure, WIRE_NOT_FOUND, "there is no device %s; there is %s",
		    wire_str_copy(name, wanted, sizeof wanted), there);
	failure_set_hint(failure, "see what there is: distorchctl status");
	failure_set_field(failure, field);
}

void failure_from_err(struct failure *failure, const char *name, const struct err *err)
{
	enum wire_code code = err->code == 0 ? WIRE_INTERNAL : (enum wire_code)err->code;

	if (name[0] != '\0') {
		failure_set(failure, code, "%s: %s", name, err->text);
	} else {
		failure_set(failure, code, "%s", err->text);
	}
	hint_for_code(failure, code);
	if (err->sys != 0) {
		failure->wire.has_detail = true;
		failure->wire.detail.has_errno = true;
		failure->wire.detail.errno_ = (uint64_t)err->sys;
	}
	if (err->offset != 0) {
		failure->wire.has_detail = true;
		failure->wire.detail.has_offset = true;
		failure->wire.detail.offset = err->offset;
	}
}

/* Users whose pins keep copies on the device. */
static uint32_t find_pinners(const struct daemon *daemon, uint32_t device,
			     uint64_t uids[FAILURE_MAX_HOLDERS])
{
	struct core_segment_view segment;
	uint32_t cursor = 0;
	uint32_t n_uids = 0;

	while (core_segment_next(daemon->core, 0, &cursor, &segment)) {
		struct core_wish_view wish;
		uint32_t wish_cursor = 0;

		while (segment.device == device && n_uids < FAILURE_MAX_HOLDERS &&
		       core_wish_next(daemon->core, segment.model, &wish_cursor, &wish)) {
			uint32_t i = 0;

			while (i < n_uids && uids[i] != wish.uid) {
				i++;
			}
			if (wish.pin && i == n_uids) {
				uids[n_uids++] = wish.uid;
			}
		}
	}
	return n_uids;
}

static void failure_no_memory(struct failure *failure, const struct daemon *daemon,
			      const struct core_action *action, const char *name)
{
	const struct core_shortage *shortage = &action->shortage;
	struct wire_error_detail *detail;
	char need[16];
	char budget[16];
	char free_[16];
	char evictable[16];

	(void)units_format_size(shortage->need, need, sizeof need);
	(void)units_format_size(shortage->budget, budget, sizeof budget);
	(void)units_format_size(shortage->free, free_, sizeof free_);
	(void)units_format_size(shortage->evictable, evictable, sizeof evictable);
	failure_set(failure, WIRE_NO_MEMORY,
		    "not enough memory for %s: needs %s, budget %s, free %s (+%s idle models could "
		    "be evicted)",
		    name, need, budget, free_, evictable);
	if (shortage->need > shortage->budget) {
		failure_set_hint(failure,
				 "raise the budget: distorchctl budget ram SIZE, or memory.ram in "
				 "distorchd.conf (this machine has %s)",
				 units_format_size(daemon->host_total_bytes, need, sizeof need));
	} else if (shortage->foreign > 0) {
		failure_set_hint(failure,
				 "%s of the budget is taken by other programs; close some of them",
				 units_format_size(shortage->foreign, need, sizeof need));
	} else {
		failure_set_hint(failure, "what is in use or pinned stands in the way: see "
					  "distorchctl ps and distorchctl clients; unpin or close "
					  "something, or raise the budget");
	}
	failure->wire.has_detail = true;
	detail = &failure->wire.detail;
	detail->has_device = true;
	detail->device = wire_str(describe_device_name(action->device, failure->device));
	detail->has_need = detail->has_budget = detail->has_free = true;
	detail->has_evictable = detail->has_held = detail->has_foreign = true;
	detail->need = shortage->need;
	detail->budget = shortage->budget;
	detail->free = shortage->free;
	detail->evictable = shortage->evictable;
	detail->held = shortage->held;
	detail->foreign = shortage->foreign;
	detail->has_holders = true;
	detail->holders.items = failure->holders;
	detail->holders.count = describe_holders(daemon, 0, failure->holders, FAILURE_MAX_HOLDERS);
	detail->uids.items = failure->uids;
	detail->uids.count = find_pinners(daemon, action->device, failure->uids);
	detail->has_uids = detail->uids.count > 0;
}

void failure_from_reply(struct failure *failure, const struct daemon *daemon,
			const struct core_action *action)
{
	const struct model_info *model = store_find_model(daemon->store, action->model);
	const struct job_info *job = store_find_job(daemon->store, action->job);
	const char *name = model == NULL ? "the model" : model->name;
	enum wire_code code = (enum wire_code)action->code;

	if (code == WIRE_NO_MEMORY && action->shortage.need != 0) {
		failure_no_memory(failure, daemon, action, name);
		return;
	}
	if (job != NULL && job->failure.code == action->code) {
		failure_from_err(failure, name, &job->failure);
		return;
	}
	switch ((int)code) {
	case WIRE_NOT_RESIDENT:
		failure_set_not_resident(failure, name);
		return;
	case WIRE_STALE:
		failure_set(failure, code,
			    "%s has changed on disk since it was loaded (generation %llu)", name,
			    (unsigned long long)action->reply.current);
		failure->wire.has_detail = true;
		failure->wire.detail.has_current = true;
		failure->wire.detail.current = action->reply.current;
		break;
	case WIRE_CANCELLED:
		failure_set(failure, code, "the load of %s was cancelled", name);
		break;
	case WIRE_SHUTTING_DOWN:
		failure_set(failure, code, "distorchd is ending and takes no new work");
		break;
	case WIRE_NOT_FOUND:
		failure_set(failure, code, "no such model or lease");
		break;
	case WIRE_TOO_MANY:
		failure_set(failure, code,
			    "a limit of the daemon is reached: models, leases, requests or "
			    "descriptors");
		break;
	default:
		failure_set(failure, code, "%s: %s", name, wire_code_info(code)->text);
		break;
	}
	hint_for_code(failure, code);
}
