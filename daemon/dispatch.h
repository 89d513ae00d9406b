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
#include "proto/wire.h"

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

/*
 * Which model a person means: id, unique prefix of at least 4 digits, path, name, or name
 * without its extension. Only models the client may see. Returns 0 or a negative code with
 * 'failure' filled.
 */
int dispatch_find_model(const struct call *call, struct wire_str text, uint64_t *ret_model,
			struct failure *failure);

/* ---- handlers by file ---- */
void dispatch_load(const struct call *call, const struct wire_load_request *request);
void dispatch_unmapped(const struct call *call, const struct wire_unmapped_request *request);
void dispatch_attach(const struct call *call, const struct wire_attach_request *request);
void dispatch_map(const struct call *call, const struct wire_map_request *request);
void dispatch_lease(const struct call *call, enum core_event_type type, uint64_t lease);
void dispatch_unload(const struct call *call, const struct wire_unload_request *request);
void dispatch_set(const struct call *call, const struct wire_set_request *request);
void dispatch_cancel(const struct call *call, const struct wire_cancel_request *request);
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
void dispatch_budget(const struct call *call, const struct wire_budget_request *request);

#endif
