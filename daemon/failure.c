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
		[WIRE_TOO_MANY] = "unload or disconnect something first, then try again",
		[WIRE_SHUTTING_DOWN] = "wait until distorchd runs again, then try again",
	};

	if (hints[code] != NULL) {
		failure_set_hint(failure, "%s", hints[code]);
	}
}

void failure_set_not_resident(struct failure *failure, const char *name)
{
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

/* "; in use: ComfyUI/812 11.1G and 2 more; pinned by uid 1000: t5 9.1G" */
static void add_use(struct sentence *sentence, const struct daemon *daemon,
		    const struct client *viewer, const struct device_use *use)
{
	const uint32_t n_named = 3;
	char size[16];
	char name[512];

	for (uint32_t i = 0; i < use->n_holders && i < n_named; i++) {
		const struct wire_holder *holder = &use->holders[i];
		char comm[65];

		sentence_add(sentence, "%s%s/%u", i == 0 ? "; in use: " : ", ",
			     wire_str_copy(holder->comm, comm, sizeof comm), (unsigned)holder->pid);
		if (viewer == NULL || holder->uid != viewer->uid) {
			sentence_add(sentence, " of uid %u", (unsigned)holder->uid);
		}
		sentence_add(sentence, " %s",
			     units_format_size(holder->held_bytes, size, sizeof size));
	}
	if (use->n_holders > n_named) {
		sentence_add(sentence, " and %u more", use->n_holders - n_named);
	}
	for (uint32_t i = 0; i < use->n_pins && i < n_named; i++) {
		const struct device_pin *pin = &use->pins[i];

		sentence_add(sentence, "%s", i == 0 ? "; pinned" : ",");
		if (i == 0 || pin->uid != use->pins[i - 1].uid) {
			sentence_add(sentence, " by uid %u:", pin->uid);
		}
		if (pin->model != 0) {
			sentence_add(sentence, " %s", describe_name(daemon, pin->model, name));
		}
		sentence_add(sentence, " %s", units_format_size(pin->bytes, size, sizeof size));
	}
	if (use->n_pins > n_named) {
		sentence_add(sentence, " and %u more", use->n_pins - n_named);
	}
}

/* "; uid 1000 has 45G, more than its share of 38G (limits.ram-per-user)", where somebody has. */
static void add_share(struct sentence *sentence, const struct daemon *daemon, uint32_t device)
{
	uint64_t bytes;
	uint32_t uid;
	char has[16];
	char share[16];

	if (core_above_share(daemon->core, device, &uid, &bytes)) {
		sentence_add(sentence,
			     "; uid %u has %s, more than its share of %s (limits.ram-per-user)",
			     uid, units_format_size(bytes, has, sizeof has),
			     units_format_size(core_share(daemon->core, device), share,
					       sizeof share));
	}
}

/* "needs 24M, budget 64M, free 16M (+8M idle models could be evicted)" and what is in the
 * way, where it is. */
static void add_shortage(struct sentence *sentence, const struct daemon *daemon,
			 const struct client *viewer, uint32_t device,
			 const struct core_shortage *shortage, const struct device_use *use)
{
	char need[16];
	char budget[16];
	char free_[16];
	char evictable[16];
	char reserved[16];
	struct core_account_view account;

	sentence_add(sentence, "needs %s, budget %s, free %s",
		     units_format_size(shortage->need, need, sizeof need),
		     units_format_size(shortage->budget, budget, sizeof budget),
		     units_format_size(shortage->free, free_, sizeof free_));
	if (shortage->evictable > 0) {
		sentence_add(sentence, " (+%s idle models could be evicted)",
			     units_format_size(shortage->evictable, evictable, sizeof evictable));
	}
	core_account_get(daemon->core, device, &account);
	if (account.reserved > 0) {
		sentence_add(sentence, ", %s reserved",
			     units_format_size(account.reserved, reserved, sizeof reserved));
	}
	if (shortage->need <= shortage->budget) {
		add_use(sentence, daemon, viewer, use);
		add_share(sentence, daemon, device);
	}
}

/* 'is_for_others': a reservation, which nobody was asked to make room for so far. */
static void hint_for_shortage(struct failure *failure, const struct daemon *daemon, uint32_t device,
			      const struct core_shortage *shortage, bool is_for_others)
{
	char size[16];
	char name[DEVICE_NAME_SIZE];

	if (shortage->need > shortage->budget && device != 0) {
		failure_set_hint(failure,
				 "%s, or raise the budget: distorchctl budget %s SIZE (it has %s)",
				 is_for_others ? "ask for less" : "place less of it there",
				 describe_device_name(daemon, device, name),
				 units_format_size(daemon->devices[device].info.total_bytes, size,
						   sizeof size));
	} else if (shortage->need > shortage->budget) {
		failure_set_hint(failure,
				 "raise the budget: distorchctl budget ram SIZE, or memory.ram in "
				 "distorchd.conf (this machine has %s)",
				 units_format_size(daemon->host_total_bytes, size, sizeof size));
	} else if (shortage->foreign > 0) {
		failure_set_hint(failure,
				 "at least %s of the budget is taken by other programs; close some "
				 "of them",
				 units_format_size(shortage->foreign, size, sizeof size));
	} else if (is_for_others && failure->use.n_holders > 0) {
		failure_set_hint(failure,
				 "ask those who use it to let it go (make-room --recall 5s), unpin "
				 "something (distorchctl ps shows all), or raise the budget");
	} else {
		failure_set_hint(failure, "unpin or close something (distorchctl ps and "
					  "distorchctl clients show all), or raise the budget");
	}
}

/* Of the model, on the device where it is short of room: that stays until a move is done. */
static uint64_t own_bytes(const struct daemon *daemon, uint64_t model, uint32_t device)
{
	struct core_segment_view segment;
	uint64_t bytes = 0;
	uint32_t cursor = 0;

	while (model != 0 && core_segment_next(daemon->core, model, &cursor, &segment)) {
		bytes += segment.device == device && segment.state == SEGMENT_READY ? segment.bytes
										    : 0;
	}
	return bytes;
}

static void hint_for_move(struct failure *failure, const struct daemon *daemon,
			  const struct core_action *action, uint64_t own)
{
	char size[16];
	char device[DEVICE_NAME_SIZE];

	failure_set_hint(failure,
			 "%s of it lie on %s until the move is done: place it on ram first, or "
			 "unload it and load it there",
			 units_format_size(own, size, sizeof size),
			 describe_device_name(daemon, action->device, device));
}

/* Who has what is in the way: by 'use' of the failure. */
static void fill_users(struct failure *failure)
{
	struct wire_error_detail *detail = &failure->wire.detail;
	const struct device_use *use = &failure->use;
	uint32_t n_uids = 0;

	for (uint32_t i = 0; i < use->n_pins; i++) {
		uint32_t known = 0;

		while (known < n_uids && failure->uids[known] != use->pins[i].uid) {
			known++;
		}
		failure->uids[known] = use->pins[i].uid;
		n_uids += known == n_uids ? 1 : 0;
	}
	failure->wire.has_detail = true;
	detail->has_in_use = detail->has_pinned = detail->has_holders = true;
	detail->in_use = use->in_use;
	detail->pinned = use->pinned;
	detail->holders.items = use->holders;
	detail->holders.count = use->n_holders;
	detail->uids.items = failure->uids;
	detail->uids.count = n_uids;
	detail->has_uids = n_uids > 0;
}

static void fill_detail(struct failure *failure, const struct daemon *daemon, uint32_t device,
			const struct core_shortage *shortage)
{
	struct wire_error_detail *detail = &failure->wire.detail;

	fill_users(failure);
	detail->has_device = true;
	detail->device = wire_str(describe_device_name(daemon, device, failure->device));
	detail->has_need = detail->has_budget = detail->has_free = true;
	detail->has_evictable = detail->has_held = detail->has_foreign = true;
	detail->need = shortage->need;
	detail->budget = shortage->budget;
	detail->free = shortage->free;
	detail->evictable = shortage->evictable;
	detail->held = shortage->held;
	detail->foreign = shortage->foreign;
}

static void failure_no_memory(struct failure *failure, const struct daemon *daemon,
			      const struct client *viewer, const struct core_action *action,
			      const struct core_shortage *shortage)
{
	const struct device_use *use = &failure->use;
	struct sentence sentence = {.text = failure->message, .capacity = sizeof failure->message};
	char name[512];
	uint64_t own;

	describe_use(daemon, viewer, action->device, action->model, &failure->use);
	if (action->code == WIRE_BUSY) {
		failure_set(failure, WIRE_BUSY, "those who were asked to let go of %s did not: ",
			    describe_device_name(daemon, action->device, failure->device));
	} else {
		failure_set(failure, WIRE_NO_MEMORY,
			    "not enough memory%s%s for %s: ", action->device == 0 ? "" : " on ",
			    action->device == 0
				    ? ""
				    : describe_device_name(daemon, action->device, failure->device),
			    action->model == 0 ? "the reservation"
					       : describe_name(daemon, action->model, name));
	}
	sentence.size = strlen(failure->message);
	add_shortage(&sentence, daemon, viewer, action->device, shortage, use);
	failure->wire.message = wire_str(failure->message);
	own = action->device == 0 ? 0 : own_bytes(daemon, action->model, action->device);
	if (own > 0 && shortage->need <= shortage->budget) {
		hint_for_move(failure, daemon, action, own);
	} else {
		hint_for_shortage(failure, daemon, action->device, shortage,
				  action->model == 0 && action->code == WIRE_NO_MEMORY);
	}
	fill_detail(failure, daemon, action->device, shortage);
}

/*
 * The numbers of a refusal that the core has noted but not sent: by what is to be seen after
 * it. Where the budget would do, it was the machine's own memory that did not.
 */
static void find_shortage(const struct daemon *daemon, const struct core_action *note,
			  const struct device_use *use, struct core_shortage *ret)
{
	struct core_account_view account;

	core_account_get(daemon->core, note->device, &account);
	*ret = (struct core_shortage){
		.need = note->device == 0 ? device_charge(daemon->host, note->note.bytes)
					  : note->note.bytes,
		.budget = account.budget,
		.free = account.free,
		.evictable = use->evictable,
		.held = account.held,
	};
	if (ret->need <= ret->free + ret->evictable) {
		ret->foreign = ret->free + ret->evictable - ret->need + 1;
		ret->free -= ret->free < ret->foreign ? ret->free : ret->foreign;
	}
}

void failure_from_refusal(struct failure *failure, const struct daemon *daemon,
			  const struct client *viewer, const struct core_action *action)
{
	struct core_shortage shortage;

	describe_use(daemon, viewer, action->device, action->model, &failure->use);
	find_shortage(daemon, action, &failure->use, &shortage);
	failure_no_memory(failure, daemon, viewer, action, &shortage);
}

const char *failure_refusal_text(const struct daemon *daemon, const struct core_action *action,
				 char *buffer, uint32_t buffer_size)
{
	const struct job_info *job = store_find_job(daemon->store, action->job);
	struct core_shortage shortage;
	struct device_use use;
	struct sentence sentence = {.text = buffer, .capacity = buffer_size};
	char need[16];

	buffer[0] = '\0';
	if (job != NULL && job->failure.code == WIRE_NO_MEMORY) {
		sentence_add(&sentence, "%s", job->failure.text);
		return buffer;
	}
	describe_use(daemon, NULL, action->device, action->model, &use);
	find_shortage(daemon, action, &use, &shortage);
	if (shortage.foreign > 0) {
		sentence_add(&sentence,
			     "needs %s; other programs have taken too much of the "
			     "memory",
			     units_format_size(shortage.need, need, sizeof need));
	} else {
		add_shortage(&sentence, daemon, NULL, action->device, &shortage, &use);
	}
	return buffer;
}

static void hint_for_plan(struct failure *failure, const struct daemon *daemon,
			  const struct plan_shortage *plan, const struct core_shortage *shortage)
{
	struct core_shortage other = *shortage;
	struct core_account_view account;
	char size[16];
	char device[DEVICE_NAME_SIZE];

	core_account_get(daemon->core, plan->device, &account);
	(void)describe_device_name(daemon, plan->device, device);
	/* A card's budget is without what others have of it. */
	other.foreign = plan->need > account.budget &&
					plan->need - account.budget <= shortage->foreign
				? shortage->foreign
				: 0;
	if (plan->is_head) {
		failure_set_hint(failure,
				 "let another device compute: --compute DEVICE; or free some of "
				 "%s (distorchctl ps shows what is there)",
				 device);
	} else if (other.foreign > 0) {
		failure_set_hint(failure, "other programs use %s of %s; close some of them",
				 units_format_size(other.foreign, size, sizeof size), device);
	} else if (plan->need <= account.budget && account.reserved > 0) {
		failure_set_hint(failure,
				 "%s of %s are reserved until that program or make-room ends; wait "
				 "for it, or place less there",
				 units_format_size(account.reserved, size, sizeof size), device);
	} else {
		hint_for_shortage(failure, daemon, plan->device, &other, false);
	}
}

void failure_from_plan(struct failure *failure, const struct daemon *daemon,
		       const struct client *viewer, const char *name, const struct err *err,
		       const struct plan_shortage *plan)
{
	struct sentence sentence = {.text = failure->message, .capacity = sizeof failure->message};
	struct core_account_view account;
	struct core_shortage shortage;

	failure_from_err(failure, name, err);
	if (plan->need == 0) {
		return;
	}
	describe_use(daemon, viewer,
		     plan->device == PLAN_ALL_DEVICES ? CORE_ALL_DEVICES : plan->device, 0,
		     &failure->use);
	sentence.size = strlen(failure->message);
	add_use(&sentence, daemon, viewer, &failure->use);
	failure->wire.message = wire_str(failure->message);
	if (plan->device == PLAN_ALL_DEVICES) {
		failure_set_hint(failure,
				 "unload or close something (distorchctl ps and distorchctl "
				 "clients show all), or raise a budget");
		fill_users(failure);
		failure->wire.detail.has_need = true;
		failure->wire.detail.need = plan->need;
		return;
	}
	core_account_get(daemon->core, plan->device, &account);
	shortage = (struct core_shortage){
		.need = plan->need,
		.budget = account.budget,
		.free = account.room,
		.evictable = account.evictable,
		.held = account.held,
		.foreign = daemon->devices[plan->device].info.foreign_bytes,
	};
	hint_for_plan(failure, daemon, plan, &shortage);
	fill_detail(failure, daemon, plan->device, &shortage);
}

void failure_from_job(struct failure *failure, const struct daemon *daemon,
		      const struct client *viewer, const char *name, const struct job_info *job)
{
	if (job->failure.code == WIRE_NO_MEMORY) {
		failure_from_plan(failure, daemon, viewer, name, &job->failure, &job->shortage);
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
		failure_set(failure, WIRE_TOO_MANY, "the daemon has no descriptors left");
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
				     daemon->devices[i].name);
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
		failure_set_hint(failure, "an administrator ends it: distorchctl drain --off");
	} else {
		failure_set_hint(failure, "see: distorchctl devices%s%s", is_one ? " " : "",
				 is_one ? last->name : "");
	}
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
		if (action->model == 0) {
			failure_set(failure, code, "the request was cancelled");
		} else {
			failure_set(failure, code, "the load of %s was cancelled", name);
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

		if (client == NULL || !core_segment_is_of(copy, user.generation)) {
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
