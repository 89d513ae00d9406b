/* SPDX-License-Identifier: Apache-2.0 */
/* Refusals in words. See failure.h. */
#include "daemon/failure.h"

#include "base/err.h"
#include "base/units.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "daemon/clients.h"
#include "daemon/core/core.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/format/format.h"
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
	static const char *const hints[WIRE_N_CODES] = {
		[WIRE_BAD_FILE] = "download the file again, or check it where it came from",
		[WIRE_CHANGED_WHILE_READING] =
			"wait until whatever writes the file has ended, then load it again",
		[WIRE_TIMEOUT] =
			"the disk or network share does not answer; check it, then load again",
		[WIRE_NOT_RESIDENT] = "load it first: distorchctl load FILE",
		[WIRE_STALE] = "load it again: distorchctl load FILE",
		[WIRE_TOO_MANY] = "end, unload or disconnect something first, then try again",
		[WIRE_SHUTTING_DOWN] = "wait until distorchd runs again, then try again",
	};

	if (hints[code] != NULL) {
		failure_set_hint(failure, "%s", hints[code]);
	}
}

void failure_set_not_resident(struct failure *failure, const struct daemon *daemon, uint64_t model)
{
	struct core_model_view view;
	char name[512];

	(void)describe_name(daemon, model, name);
	if (core_model_get(daemon->core, model, &view) && view.job != 0) {
		failure_set(failure, WIRE_NOT_RESIDENT, "%s is still being loaded", name);
		failure_set_hint(failure, "try again when it is there: distorchctl ps shows how "
					  "far it is, distorchctl load FILE waits for it");
		return;
	}
	failure_set(failure, WIRE_NOT_RESIDENT, "%s is known but not in memory", name);
	hint_for_code(failure, WIRE_NOT_RESIDENT);
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

void failure_from_job(struct failure *failure, const struct daemon *daemon,
		      const struct client *viewer, const char *name, const struct job_info *job)
{
	if (job->failure.code == WIRE_NO_MEMORY) {
		failure_from_plan(failure, daemon, viewer, name, &job->failure, &job->shortage);
		if (job->is_taken) {
			failure_set_hint(failure,
					 "others have taken it since it was looked at: close some "
					 "of them (nvidia-smi names them), then try again");
		}
	} else {
		failure_from_err(failure, name, &job->failure);
	}
}

static void failure_too_many(struct failure *failure, const struct core_action *action)
{
	static const char *const words[CORE_LIMIT_N_VALUES] = {
		[CORE_LIMIT_CLIENTS] = "clients the daemon keeps track of",
		[CORE_LIMIT_USER_CLIENTS] =
			"clients of one user, those included that are gone and still map memory",
		[CORE_LIMIT_MODELS] = "models the daemon knows, none of them idle",
		[CORE_LIMIT_USER_MODELS] = "models of one user",
		[CORE_LIMIT_JOBS] = "loads under way",
		[CORE_LIMIT_USER_QUEUED] = "loads of one user that wait for their turn",
		[CORE_LIMIT_SEGMENTS] = "copies of models",
		[CORE_LIMIT_LEASES] = "leases",
		[CORE_LIMIT_USER_LEASES] = "leases of one user",
		[CORE_LIMIT_MODEL_LEASES] = "leases of one model",
		[CORE_LIMIT_WAITERS] = "requests that wait for an answer",
		[CORE_LIMIT_WISHES] = "wishes about models",
		[CORE_LIMIT_RESERVATIONS] = "reservations",
		[CORE_LIMIT_USER_RESERVATIONS] = "reservations of one user",
	};
	const char *what =
		action->too_many.limit < CORE_LIMIT_N_VALUES ? words[action->too_many.limit] : NULL;

	if (what == NULL) {
		failure_set(failure, WIRE_TOO_MANY,
			    "there is no descriptor left for the answer: the daemon has none, or "
			    "answers of this user that nobody has read yet have all of his");
	} else {
		failure_set(failure, WIRE_TOO_MANY, "there are as many %s as there may be: %llu",
			    what, (unsigned long long)action->too_many.number);
	}
}

/* Bits of the devices that are lost: of all of them, or of those that the load needs. */
static uint32_t find_lost(const struct daemon *daemon, const struct job_info *needs)
{
	struct core_account_view account;
	uint32_t lost = 0;

	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		core_account_get(daemon->core, i, &account);
		if (account.is_lost && (needs == NULL || failure_may_need(needs, i))) {
			lost |= 1U << i;
		}
	}
	return lost;
}

/* One of them was to have it or, of a move from there, had it; 'device' had, where that is not 0. */
static void failure_lost(struct failure *failure, const struct daemon *daemon, const char *what,
			 const struct job_info *job, uint32_t device)
{
	const uint32_t needed = device != 0 ? 1U << device : find_lost(daemon, job);
	const uint32_t lost = needed != 0 ? needed : find_lost(daemon, NULL);
	const struct known_device *last = NULL;
	char devices[512] = "";
	char label[PLAN_LABEL_SIZE];
	struct sentence names = {.text = devices, .capacity = sizeof devices};
	bool is_let_go = lost != 0; /* all of them are */
	bool is_one;
	struct core_account_view account;
	const char *state;

	for (uint32_t i = 1; i < daemon->n_devices; i++) {
		if ((lost >> i & 1) != 0) {
			core_account_get(daemon->core, i, &account);
			is_let_go = is_let_go && account.is_draining;
			sentence_add(&names, "%s%s", last == NULL ? "" : " or ",
				     describe_device_label(daemon, i, label));
			last = &daemon->devices[i];
		}
	}
	is_one = last != NULL && (lost & (lost - 1)) == 0;
	state = is_one && last->state != DEVICE_STATE_OK ? device_state_name(last->state) : "gone";
	failure_set(failure, WIRE_DEVICE_LOST, "%s, which %s %s, is %s",
		    lost == 0 ? "a device" : devices,
		    needed != 0 || lost == 0 ? "was to have" : "had", what,
		    is_let_go ? "drained and let go of" : state);
	if (is_let_go) {
		failure_set_hint(failure, "an administrator ends it: distorchctl drain --off%s%s",
				 is_one ? " --device " : "", is_one ? last->name : "");
	} else {
		failure_set_hint(failure, "see: distorchctl devices%s%s", is_one ? " " : "",
				 is_one ? last->name : "");
	}
}

static bool is_place(const struct daemon *daemon, const struct core_action *action)
{
	struct client *client = daemon_find_client(daemon, action->client);
	const struct pending *pending =
		client == NULL ? NULL : client_find_pending(client, action->request);

	return pending != NULL && pending->method == WIRE_METHOD_PLACE;
}

static void failure_stale(struct failure *failure, const char *name, uint64_t current)
{
	failure_set(failure, WIRE_STALE,
		    "%s has changed on disk since it was loaded (generation %llu)", name,
		    (unsigned long long)current);
	failure->wire.has_detail = true;
	failure->wire.detail.has_current = true;
	failure->wire.detail.current = current;
}

void failure_from_reply(struct failure *failure, const struct daemon *daemon,
			const struct core_action *action)
{
	const struct job_info *job = store_find_job(daemon->store, action->job);
	char buffer[512];
	const char *name = describe_name(daemon, action->model, buffer);
	enum wire_code code = (enum wire_code)action->code;

	if ((code == WIRE_NO_MEMORY || (code == WIRE_BUSY && action->model == 0)) &&
	    action->shortage.need != 0) {
		failure_no_memory(failure, daemon, daemon_find_client(daemon, action->client),
				  action, &action->shortage);
		return;
	}
	if (job != NULL && job->failure.code == action->code) {
		failure_from_job(failure, daemon, daemon_find_client(daemon, action->client), name,
				 job);
		return;
	}
	switch ((int)code) {
	case WIRE_NOT_RESIDENT:
		if (action->model != 0) {
			failure_set_not_resident(failure, daemon, action->model);
			return;
		}
		failure_set(failure, code, "nobody has loaded this file");
		break;
	case WIRE_STALE:
		failure_stale(failure, name, action->reply.current);
		break;
	case WIRE_CANCELLED:
		if (action->model == 0) {
			failure_set(failure, code, "the request was cancelled");
		} else {
			failure_set(failure, code, "the %s of %s was cancelled",
				    is_place(daemon, action) ? "move" : "load", name);
		}
		break;
	case WIRE_BUSY: /* of the core's outcomes there is one */
		failure_set_draining(failure, daemon, failure_find_drained(daemon, job));
		return;
	case WIRE_SHUTTING_DOWN:
		failure_set(failure, code, "distorchd is ending and takes no new work");
		break;
	case WIRE_NOT_FOUND:
		failure_set(failure, code, "no such model, lease or reservation");
		break;
	case WIRE_NOT_ALLOWED: /* of the core's outcomes there is one */
		failure_set(failure, code, "%s lies on devices for another user", name);
		failure_set_hint(failure, "load it without an allocation to have it from RAM");
		return;
	case WIRE_DEVICE_LOST:
		failure_lost(failure, daemon, action->model == 0 ? "the reservation" : name, job,
			     action->model == 0 ? action->device : 0);
		return;
	case WIRE_TOO_MANY:
		failure_too_many(failure, action);
		break;
	case WIRE_BAD_ARGUMENT: /* of the core's outcomes there is one */
		failure_set(failure, code,
			    "a load that does not wait (no_wait) cannot attach: attach later");
		failure_set_field(failure, "attach");
		break;
	default:
		failure_set(failure, code, "%s: %s", name, wire_code_info(code)->text);
		break;
	}
	hint_for_code(failure, code);
}

/* ---- bytes that changed ---- */

/* "; in use by ComfyUI/812 and 2 more": of who has a copy on a card, one may have written there. */
static void add_users(struct sentence *sentence, const struct daemon *daemon,
		      const struct core_segment_view *copy)
{
	const uint32_t n_named = 3;
	struct core_holder_view user;
	uint32_t cursor = 0;
	uint32_t n_users = 0;

	while (core_holder_next(daemon->core, copy->model, &cursor, &user)) {
		const struct client *client = daemon_find_client(daemon, user.client);

		if (client == NULL || !core_holder_counts(&user, copy)) {
			continue;
		}
		if (n_users < n_named) { /* by the kernel's word: this is for others too */
			sentence_add(sentence, "%s%s/%u", n_users == 0 ? "; in use by " : ", ",
				     client->comm, client->pid);
		}
		n_users++;
	}
	if (n_users > n_named) {
		sentence_add(sentence, " and %u more", n_users - n_named);
	}
}

void failure_difference_text(const struct daemon *daemon, const struct generation_info *info,
			     const struct core_segment_view *copy, uint32_t shard, char *buffer,
			     size_t buffer_size)
{
	struct sentence sentence = {.text = buffer, .capacity = buffer_size};
	char device[DEVICE_NAME_SIZE];
	char name[81];

	buffer[0] = '\0';
	if (shard < info->n_shards && info->shards[shard].name != NULL) {
		sentence_add(&sentence, "file %s: ",
			     wire_str_copy(wire_str(info->shards[shard].name), name, sizeof name));
	}
	if (copy->is_block) {
		sentence_add(&sentence, "its bytes on %s no longer match their checksum",
			     describe_device_name(daemon, copy->device, device));
		add_users(&sentence, daemon, copy);
	} else { /* sealed: nobody else can have written there */
		sentence_add(&sentence, "%s", history_why_words(CORE_WHY_BAD_SUM));
	}
}
