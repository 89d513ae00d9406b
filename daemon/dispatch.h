/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the corridor: what the handlers of requests share. A handler gets a checked
 * request and either answers at once or makes an event that the core will answer. Loop only.
 */
#ifndef DAEMON_DISPATCH_H
#define DAEMON_DISPATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/daemon.h"
#include "daemon/failure.h"
#include "daemon/format/format.h"
#include "proto/wire.h"

struct conn;
struct wire_packet;

/* The server's handlers. */
void dispatch_request(void *context, struct conn *conn, const struct wire_packet *packet,
		      const void *request, int *fds, uint32_t n_fds);
void dispatch_closed(void *context, struct conn *conn);

/* One request on its way through a handler; borrowed for the call. */
struct call {
	struct daemon *daemon;
	struct client *client; /* NULL only for hello */
	struct conn *conn;
	uint32_t request;
	const struct wire_message *message;
	int *fds; /* take with steal_fd; the caller closes the rest */
	uint32_t n_fds;
};

/* The one answer. 'fds' stay the caller's: they are duplicated where they must live on. */
void call_answer(const struct call *call, const void *response);
void call_answer_fds(const struct call *call, const void *response, int *fds, uint32_t n_fds);
void call_fail(const struct call *call, const struct failure *failure);
void call_refuse(const struct call *call, enum wire_code code, const char *field,
		 const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Remember the request until the core answers it. NULL: refused already (no memory). */
struct pending *call_expect(const struct call *call);

/* A time that does not fit is as good as for ever. */
uint64_t dispatch_ns_of(uint64_t ms);
/* False: refused. */
bool dispatch_read_policy(const struct call *call, const struct wire_policy *wire,
			  struct core_policy *ret);

/*
 * Which model a person means: id, unique prefix of at least 4 digits, path, name, or name
 * without its extension. Only models the client may see. Returns 0 or a negative code with
 * 'failure' filled.
 */
int dispatch_find_model(const struct call *call, struct wire_str text, uint64_t *ret_model,
			struct failure *failure);

/*
 * Which device a request means (dispatch_device.c): by the client's own numbers, a UUID or its
 * beginning, or a card's name. Returns 0 or a negative code with 'failure' filled.
 */
int dispatch_find_device(const struct call *call, struct wire_str name, const char *field,
			 uint32_t *ret_device, struct failure *failure);
/* The field 'device' of a request. False: there is no such device, and that has been answered. */
bool dispatch_take_device(const struct call *call, struct wire_str name, uint32_t *ret_device);

/* A load's event, with its file presented (dispatch_model.c); 'name' may be empty. */
void dispatch_step_with_file(struct daemon *daemon, struct core_event *event, struct wire_str name);
/* What the configuration says that a load's copy lies in. */
enum core_backing dispatch_default_backing(const struct daemon *daemon);

struct core_file_key dispatch_key_of(const struct file *file);
/* Equal keys of several files are not yet the same files: are they the model's (0: none)? */
bool dispatch_is_alike(const struct daemon *daemon, uint64_t model, const struct file *file);
/* What people call what is in it. */
void dispatch_name_of(const struct file *file, char ret[513]);

/* What a load asks for, besides its files. */
struct load_wish {
	enum format format;
	enum core_backing backing;
	struct core_policy policy;
	bool insists_backing, no_wait, attach, map;
	uint64_t placement;
	char name[513]; /* empty: that of the file */
};

struct placement_words;
/* The core's number of a placement. False: refused. */
bool dispatch_read_placement(const struct call *call, const struct placement_words *words,
			     uint64_t *ret_placement);

/* Have the sources of the caller's uid room for the descriptors of 'call'? WIRE_TOO_MANY. */
int dispatch_check_share(const struct call *call, struct err *err);

/* Have the core decide about a request that call_expect remembers; take the reference of 'file'. */
void dispatch_begin_load(const struct call *call, const struct load_wish *wish, struct file *file);
void dispatch_begin_attach(const struct call *call, bool map, struct file *file);

/* ---- handlers by file ---- */
void dispatch_load(const struct call *call, const struct wire_load_request *request);
void dispatch_unmapped(const struct call *call, const struct wire_unmapped_request *request);
void dispatch_attach(const struct call *call, const struct wire_attach_request *request);
void dispatch_map(const struct call *call, const struct wire_map_request *request);
void dispatch_map_blocks(const struct call *call, const struct wire_map_request *request);
void dispatch_plan(const struct call *call, const struct wire_plan_request *request);
void dispatch_place(const struct call *call, const struct wire_place_request *request);
void dispatch_reserve(const struct call *call, const struct wire_reserve_request *request);
/* One that the core has not heard of yet. False: there is none. */
bool dispatch_cancel_reserve(const struct call *call, uint32_t request);
void dispatch_release(const struct call *call, const struct wire_release_request *request);
void dispatch_lease(const struct call *call, enum core_event_type type, uint64_t lease);
void dispatch_unload(const struct call *call, const struct wire_unload_request *request);
void dispatch_set(const struct call *call, const struct wire_set_request *request);
void dispatch_verify(const struct call *call, const struct wire_verify_request *request);

void dispatch_list(const struct call *call, const struct wire_list_request *request);
void dispatch_show(const struct call *call, const struct wire_show_request *request);
void dispatch_devices(const struct call *call);
void dispatch_clients(const struct call *call);
void dispatch_status(const struct call *call);
void dispatch_config(const struct call *call);
void dispatch_history(const struct call *call, const struct wire_events_history_request *request);
void dispatch_subscribe(const struct call *call, const struct wire_subscribe_request *request);
void dispatch_metrics(const struct call *call);
void dispatch_store(const struct call *call);
void dispatch_drain(const struct call *call, const struct wire_drain_request *request);

void dispatch_budget(const struct call *call, const struct wire_budget_request *request);
void dispatch_warm(const struct call *call, const struct wire_warm_request *request);
/* A file that is to be listed can be opened, or 'err' says why not. */
void dispatch_warm_opened(struct daemon *daemon, uint64_t client, uint32_t request,
			  const char *path, const struct err *err);
void dispatch_config_set(const struct call *call, const struct wire_config_set_request *request);

#endif
