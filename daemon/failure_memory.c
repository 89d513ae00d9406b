/* SPDX-License-Identifier: Apache-2.0 */
/* What there is no room for, in words: the numbers, whose the room is, what to do. See failure.h. */
#include "base/err.h"
#include "base/units.h"

#include <stdio.h>
#include <string.h>

#include "daemon/core/core.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/failure.h"
#include "daemon/plan/explain.h"
#include "proto/wire.h"

#define CLOSE_PART 100 /* of what is needed: less than that is told by itself */
#define MAX_NAMED  3U  /* of those who have something */

/* "; in use: ComfyUI/812 11.1G and 2 more" */
static void add_holders(struct sentence *sentence, const struct client *viewer, const char *what,
			const struct wire_holder *holders, uint32_t n_holders)
{
	char size[16];

	for (uint32_t i = 0; i < n_holders && i < MAX_NAMED; i++) {
		const struct wire_holder *holder = &holders[i];
		char comm[65];

		sentence_add(sentence, "%s%s/%u", i == 0 ? what : ", ",
			     wire_str_copy(holder->comm, comm, sizeof comm), (unsigned)holder->pid);
		if (viewer == NULL || holder->uid != viewer->uid) {
			sentence_add(sentence, " of uid %u", (unsigned)holder->uid);
		}
		sentence_add(sentence, " %s",
			     units_format_size(holder->held_bytes, size, sizeof size));
	}
	if (n_holders > MAX_NAMED) {
		sentence_add(sentence, " and %u more", n_holders - MAX_NAMED);
	}
}

/* Whose the device's bytes are; pins as "; pinned by uid 1000: t5 9.1G". */
static void add_use(struct sentence *sentence, const struct daemon *daemon,
		    const struct client *viewer, const struct device_use *use)
{
	char size[16];
	char name[512];

	add_holders(sentence, viewer, "; in use: ", use->holders, use->n_holders);
	add_holders(sentence, viewer, "; reserved by ", use->reservers, use->n_reservers);
	for (uint32_t i = 0; i < use->n_pins && i < MAX_NAMED; i++) {
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
	if (use->n_pins > MAX_NAMED) {
		sentence_add(sentence, " and %u more", use->n_pins - MAX_NAMED);
	}
}

/* "; uid 1000 has 45G, more than its share of 38G (limits.ram-per-user)", where somebody else has:
 * no share binds who is alone. */
static void add_share(struct sentence *sentence, const struct daemon *daemon,
		      const struct client *viewer, uint32_t device)
{
	uint64_t bytes;
	uint32_t uid;
	char has[16];
	char share[16];

	if (core_above_share(daemon->core, device, &uid, &bytes) &&
	    (viewer == NULL || viewer->uid != uid)) {
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
	char lacking[16];
	const uint64_t room = shortage->free + shortage->evictable;
	struct core_account_view account;

	sentence_add(sentence, "needs %s, budget %s, free %s",
		     units_format_size(shortage->need, need, sizeof need),
		     units_format_size(shortage->budget, budget, sizeof budget),
		     units_format_size(shortage->free, free_, sizeof free_));
	if (shortage->evictable > 0) {
		sentence_add(sentence, " (+%s idle models could be evicted)",
			     units_format_size(shortage->evictable, evictable, sizeof evictable));
	}
	if (shortage->need > room && shortage->need - room < shortage->need / CLOSE_PART) {
		sentence_add(sentence, ": %s too little", /* the numbers may look the same */
			     units_format_size(shortage->need - room, lacking, sizeof lacking));
	}
	core_account_get(daemon->core, device, &account);
	if (account.reserved > 0) {
		sentence_add(sentence, ", %s reserved",
			     units_format_size(account.reserved, reserved, sizeof reserved));
	}
	if (shortage->need <= shortage->budget) {
		add_use(sentence, daemon, viewer, use);
		add_share(sentence, daemon, viewer, device);
	}
}

static uint64_t total_of(const struct daemon *daemon, uint32_t device)
{
	return device == 0 ? daemon->host_total_bytes : daemon->devices[device].info.total_bytes;
}

/* ", or raise the budget", where it is not all that others leave of the device. */
static const char *or_raise(const struct daemon *daemon, uint32_t device)
{
	const uint64_t others = device == 0 ? 0 : daemon->devices[device].strangers_bytes;
	const uint64_t total = total_of(daemon, device);
	struct core_account_view account;

	core_account_get(daemon->core, device, &account);
	return total > others && account.budget < total - others ? ", or raise the budget" : "";
}

/* It is more than the budget: what can be done about that is said by what the device has. */
static void hint_for_budget(struct failure *failure, const struct daemon *daemon, uint32_t device,
			    uint64_t need, bool is_for_others)
{
	const uint64_t total = total_of(daemon, device);
	char size[16];
	char label[PLAN_LABEL_SIZE];
	char name[DEVICE_NAME_SIZE];

	(void)units_format_size(total, size, sizeof size);
	if (need > total) {
		failure_set_hint(failure, "%s has %s in all: %s",
				 device == 0 ? "this machine"
					     : describe_device_label(daemon, device, label),
				 size,
				 is_for_others ? "ask for less"
					       : "place less of it there, and the rest elsewhere");
	} else if (device == 0) {
		failure_set_hint(failure,
				 "raise the budget: distorchctl budget ram SIZE, or memory.ram in "
				 "distorchd.conf (this machine has %s)",
				 size);
	} else {
		failure_set_hint(failure,
				 "%s, or raise the budget: distorchctl budget %s SIZE (it has %s)",
				 is_for_others ? "ask for less" : "place less of it there",
				 describe_device_name(daemon, device, name), size);
	}
}

/* 'is_for_others': a reservation, and not one that was waited for in vain. */
static void hint_for_shortage(struct failure *failure, const struct daemon *daemon, uint32_t device,
			      const struct core_shortage *shortage, bool is_for_others)
{
	struct core_account_view account;
	char size[16];
	char label[PLAN_LABEL_SIZE];

	core_account_get(daemon->core, device, &account);
	if (shortage->need > shortage->budget) {
		hint_for_budget(failure, daemon, device, shortage->need, is_for_others);
	} else if (shortage->foreign > 0) {
		failure_set_hint(failure,
				 "at least %s of the budget is taken by other programs; close some "
				 "of them",
				 units_format_size(shortage->foreign, size, sizeof size));
	} else if (account.reserved > 0 &&
		   shortage->need <= shortage->free + shortage->evictable + account.reserved) {
		failure_set_hint(failure,
				 "%s of %s are reserved until that program or make-room ends; wait "
				 "for it, or %s",
				 units_format_size(account.reserved, size, sizeof size),
				 describe_device_label(daemon, device, label),
				 is_for_others ? "ask for less" : "place less there");
	} else if (is_for_others && !shortage->is_recalling && failure->use.n_holders > 0) {
		failure_set_hint(failure,
				 "ask those who use it to let it go (make-room --recall 5s), or "
				 "unpin something (distorchctl ps shows all)%s",
				 or_raise(daemon, device));
	} else {
		failure_set_hint(failure,
				 "unpin or close something (distorchctl ps and distorchctl clients "
				 "show all)%s",
				 or_raise(daemon, device));
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
	char device[PLAN_LABEL_SIZE];

	failure_set_hint(failure,
			 "%s of it lie on %s until the move is done: place it on ram first, or "
			 "unload it and load it there",
			 units_format_size(own, size, sizeof size),
			 describe_device_label(daemon, action->device, device));
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

/* Of a hole as large as numbers are it is more than the wire has, rounded to pages. */
static uint64_t told_need(uint64_t need)
{
	return need < INT64_MAX ? need : INT64_MAX;
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
	detail->need = told_need(shortage->need);
	detail->budget = shortage->budget;
	detail->free = shortage->free;
	detail->evictable = shortage->evictable;
	detail->held = shortage->held;
	detail->foreign = shortage->foreign;
	/* What is more than there is of the device is so for ever. */
	failure->wire.retryable = failure->wire.retryable &&
				  shortage->need <= total_of(daemon, device);
}

/* It is for one whose reservations may have a part of the device only. */
static void failure_above_share(struct failure *failure, const struct daemon *daemon,
				const struct client *viewer, const struct core_action *action)
{
	const struct core_shortage *shortage = &action->shortage;
	struct wire_error_detail *detail = &failure->wire.detail;
	char share[16];
	char has[16];
	char need[16];
	char label[PLAN_LABEL_SIZE];

	failure_set(failure, WIRE_NO_MEMORY,
		    "one user may reserve %s of %s (limits.ram-per-user): uid %u has %s reserved "
		    "and asks for %s more",
		    units_format_size(shortage->budget, share, sizeof share),
		    describe_device_label(daemon, action->device, label),
		    viewer == NULL ? 0 : viewer->uid,
		    units_format_size(shortage->budget - shortage->free, has, sizeof has),
		    units_format_size(shortage->need, need, sizeof need));
	failure_set_hint(failure, "ask for less, end another reservation, or have an administrator "
				  "ask for the room");
	failure->wire.retryable = shortage->need <= shortage->budget;
	failure->wire.has_detail = true;
	detail->has_device = detail->has_need = detail->has_budget = detail->has_free = true;
	detail->device = wire_str(describe_device_name(daemon, action->device, failure->device));
	detail->need = told_need(shortage->need);
	detail->budget = shortage->budget;
	detail->free = shortage->free;
}

void failure_no_memory(struct failure *failure, const struct daemon *daemon,
		       const struct client *viewer, const struct core_action *action,
		       const struct core_shortage *shortage)
{
	const struct device_use *use = &failure->use;
	struct sentence sentence = {.text = failure->message, .capacity = sizeof failure->message};
	char label[PLAN_LABEL_SIZE];
	char name[512];
	uint64_t own;

	if (shortage->is_of_share) {
		failure_above_share(failure, daemon, viewer, action);
		return;
	}
	describe_use(daemon, viewer, action->device, action->model, &failure->use);
	if (action->code == WIRE_BUSY) {
		failure_set(failure, WIRE_BUSY, "those who were asked to let go of %s did not: ",
			    describe_device_label(daemon, action->device, label));
	} else {
		failure_set(failure, WIRE_NO_MEMORY,
			    "not enough memory%s%s for %s: ", action->device == 0 ? "" : " on ",
			    action->device == 0
				    ? ""
				    : describe_device_label(daemon, action->device, label),
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
	char size[32];
	char device[PLAN_LABEL_SIZE];

	core_account_get(daemon->core, plan->device, &account);
	(void)describe_device_label(daemon, plan->device, device);
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
	} else if (plan->virtual_vram > 0) {
		failure_set_hint(failure, "ask for more virtual VRAM: %s are enough",
				 explain_least(plan->virtual_vram, size, sizeof size));
	} else if (other.foreign > 0) {
		failure_set_hint(failure, "other programs use %s of %s; close some of them",
				 units_format_size(other.foreign, size, sizeof size), device);
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
		bool may_raise = false;

		for (uint32_t i = 0; i < daemon->n_devices; i++) {
			may_raise = may_raise || or_raise(daemon, i)[0] != '\0';
		}
		failure_set_hint(failure,
				 "unload or close something (distorchctl ps and distorchctl "
				 "clients show all)%s",
				 may_raise ? ", or raise a budget" : "");
		fill_users(failure);
		failure->wire.detail.has_need = true;
		failure->wire.detail.need = told_need(plan->need);
		return;
	}
	core_account_get(daemon->core, plan->device, &account);
	shortage = (struct core_shortage){
		.need = plan->need,
		.budget = account.budget,
		.free = account.room,
		.evictable = account.evictable,
		.held = account.held,
		.foreign = daemon->devices[plan->device].strangers_bytes,
	};
	hint_for_plan(failure, daemon, plan, &shortage);
	fill_detail(failure, daemon, plan->device, &shortage);
	failure->wire.detail.evictable = plan->evictable; /* what it has itself is not */
}
