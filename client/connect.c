/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening and closing a connection, the hello, and what a fork means for it.
 */
#include "base/cleanup.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/client.h"
#include "client/error.h"
#include "client/event.h"
#include "client/keeper.h"
#include "client/options.h"
#include "client/result.h"

#define DEFAULT_TIMEOUT_MS 30000
#define SYSTEM_SOCKET      "/run/distorchd/distorchd.sock"
#define USER_SOCKET        "distorchd/distorchd.sock"
#define SEND_BUFFER_BYTES  (4 * WIRE_PACKET_BYTES)
#define CONNECT_RETRY_MS   10
#define DEVICES_MAX        64 /* as a hello has them */

/* Every open connection of this process, so that a fork finds them in order. */
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list registry = {&registry, &registry};
static pthread_once_t registry_once = PTHREAD_ONCE_INIT;

const char *distorch_version(void)
{
	return DISTORCH_VERSION;
}

/* ---- fork: the child has a copy of the socket, but the parent's threads read it ---- */

static int make_condition(pthread_cond_t *condition)
{
	pthread_condattr_t attributes;
	int rc = pthread_condattr_init(&attributes);

	if (rc == 0) {
		rc = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
		if (rc == 0) {
			rc = pthread_cond_init(condition, &attributes);
		}
		(void)pthread_condattr_destroy(&attributes); /* nothing it could fail at */
	}
	return rc;
}

static void fork_prepare(void)
{
	pthread_mutex_lock(&registry_lock);
	LIST_FOR_EACH (link, &registry) {
		pthread_mutex_lock(&container_of(link, struct distorch, link)->lock);
	}
}

static void fork_parent(void)
{
	LIST_FOR_EACH (link, &registry) {
		pthread_mutex_unlock(&container_of(link, struct distorch, link)->lock);
	}
	pthread_mutex_unlock(&registry_lock);
}

/* The child closes its copy of the socket; its first call connects anew. */
static void fork_child(void)
{
	LIST_FOR_EACH (link, &registry) {
		struct distorch *c = container_of(link, struct distorch, link);

		if (c->fd >= 0) {
			(void)close(c->fd); /* the parent has its own */
		}
		c->fd = -1;
		c->serial++;
		c->pid = getpid();
		c->is_led = false;
		c->is_opening = false;
		c->is_lost = true; /* until its first call */
		c->n_calls = 0;
		/* They lie on stacks of threads that are not here, but for one that forked in its
		 * progress callback and goes on here: it has to find itself in no list. */
		LIST_FOR_EACH_SAFE (call, &c->calls) {
			list_remove(call);
		}
		keeper_orphan(c);
		client_drop_events(c);
		(void)make_condition(&c->changed); /* the old one may have waiters for ever */
		pthread_mutex_unlock(&c->lock);
	}
	pthread_mutex_unlock(&registry_lock);
}

static void registry_begin(void)
{
	/* Without memory for it, a child's calls are refused by their pid. */
	(void)pthread_atfork(fork_prepare, fork_parent, fork_child);
}

static void registry_add(struct distorch *c)
{
	(void)pthread_once(&registry_once, registry_begin); /* cannot fail with a valid control */
	pthread_mutex_lock(&registry_lock);
	list_append(&registry, &c->link);
	pthread_mutex_unlock(&registry_lock);
}

/* ---- life of the object ---- */

static struct distorch *client_free(struct distorch *c)
{
	pthread_mutex_lock(&registry_lock);
	list_remove(&c->link);
	pthread_mutex_unlock(&registry_lock);
	keeper_drop(c);
	result_free(c->subscription_texts);
	result_free((void *)(uintptr_t)c->devices.items);
	client_drop_events(c);
	if (c->fd >= 0) {
		(void)close(c->fd); /* the daemon sees the end either way */
	}
	(void)pthread_cond_destroy(&c->changed); /* nobody waits any more */
	(void)pthread_mutex_destroy(&c->lock);
	result_free(c->server);
	free(c->in);
	free(c->path);
	free(c->client);
	free(c->label);
	free(c);
	return NULL;
}

void client_ref(struct distorch *c)
{
	__atomic_fetch_add(&c->n_refs, 1, __ATOMIC_RELAXED);
}

void client_unref(struct distorch *c)
{
	if (__atomic_sub_fetch(&c->n_refs, 1, __ATOMIC_ACQ_REL) == 0) {
		(void)client_free(c);
	}
}

static struct distorch *client_new(const char *path, const struct distorch_options *options)
{
	struct distorch *c = calloc(1, sizeof *c);

	if (c == NULL) {
		return NULL;
	}
	c->n_refs = 1;
	c->pid = getpid();
	c->fd = -1;
	c->next_id = 1;
	c->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
	list_init(&c->link);
	list_init(&c->calls);
	list_init(&c->events);
	list_init(&c->leases);
	(void)pthread_mutex_init(&c->lock, NULL); /* cannot fail with default attributes */
	if (make_condition(&c->changed) != 0) {
		free(c);
		return NULL;
	}
	c->in = malloc(WIRE_PACKET_BYTES);
	c->path = strdup(path);
	c->client =
		strdup(options->client != NULL ? options->client : "libdistorch/" DISTORCH_VERSION);
	c->label = options->label != NULL ? strdup(options->label) : NULL;
	if (c->in == NULL || c->path == NULL || c->client == NULL ||
	    (options->label != NULL && c->label == NULL)) {
		return client_free(c);
	}
	return c;
}

static int keep_devices(struct distorch *c, const struct distorch_options *options)
{
	struct wire_str given[DEVICES_MAX];
	struct wire_list list;
	struct wire_str *kept;
	int rc = options_texts("options->device_uuids", options->device_uuids,
			       options->n_device_uuids, DEVICES_MAX, given, &list);

	if (rc < 0 || list.count == 0) {
		return rc;
	}
	kept = result_new(sizeof given);
	if (kept == NULL) {
		return failure_memory();
	}
	c->devices.items = kept;
	while (c->devices.count < list.count) {
		const char *text = result_text(kept, given[c->devices.count]);

		if (text == NULL) {
			return failure_memory();
		}
		kept[c->devices.count++] = wire_str(text);
	}
	return 0;
}

/* ---- connecting ---- */

int distorch_default_path(char *buffer, size_t buffer_size)
{
	const char *given = getenv("DISTORCH_SOCKET");
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	int n;

	failure_clear(NULL);
	if (options_need("buffer", buffer) < 0) {
		return -DISTORCH_E_BAD_ARGUMENT;
	}
	if (given != NULL && given[0] != '\0') {
		n = snprintf(buffer, buffer_size, "%s", given);
	} else {
		n = -1;
		if (runtime != NULL && runtime[0] == '/') {
			n = snprintf(buffer, buffer_size, "%s/" USER_SOCKET, runtime);
		}
		if (n < 0 || (size_t)n >= buffer_size || access(buffer, F_OK) != 0) {
			n = snprintf(buffer, buffer_size, SYSTEM_SOCKET);
		}
	}
	if (n < 0 || (size_t)n >= buffer_size) {
		return failure_set(DISTORCH_E_TOO_LARGE, 0, NULL,
				   "the path of the socket does not fit %zu bytes", buffer_size);
	}
	return 0;
}

static int connect_failed(const struct distorch *c, int sys)
{
	if (sys == EACCES || sys == EPERM) {
		return failure_set(DISTORCH_E_NOT_ALLOWED, sys,
				   "join the group that ls -l shows for it, then log in again: "
				   "sudo usermod -aG distorchd NAME",
				   "you may not use the socket %s", c->path);
	}
	if (sys == EPROTOTYPE) {
		return failure_set(DISTORCH_E_NO_CONNECTION, sys, NULL,
				   "%s is not a socket of distorchd: it is of another type",
				   c->path);
	}
	return failure_set(DISTORCH_E_NO_CONNECTION, sys,
			   "start it (distorchd --socket PATH, or systemctl start distorchd), or "
			   "name its socket by DISTORCH_SOCKET",
			   "no daemon answers at %s: %s", c->path, strerror(sys));
}

static void pause_unlocked(struct distorch *c)
{
	pthread_mutex_unlock(&c->lock);
	(void)poll(NULL, 0, CONNECT_RETRY_MS); /* only a pause */
	pthread_mutex_lock(&c->lock);
}

/* Connect the descriptor; waits while the daemon's backlog is full, without the lock. Returns an
 * errno. */
static int connect_socket(struct distorch *c, int fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	uint64_t deadline = client_now_ms() + c->timeout_ms;

	memcpy(address.sun_path, c->path, strlen(c->path)); /* its length was checked */
	while (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
		if (errno != EAGAIN && errno != EINTR) {
			return errno;
		}
		if (client_now_ms() >= deadline) {
			return ETIMEDOUT;
		}
		pause_unlocked(c);
		if (c->is_closed) {
			return ECANCELED; /* and the descriptor with it */
		}
	}
	return 0;
}

/* The lost text of an earlier connection goes; a failed hello leaves none open. */
static int open_socket(struct distorch *c)
{
	struct sockaddr_un address;
	int size = SEND_BUFFER_BYTES;
	int sys;

	if (strlen(c->path) >= sizeof address.sun_path) {
		return failure_set(DISTORCH_E_BAD_ARGUMENT, 0, NULL,
				   "the socket's path has %zu bytes; %zu are possible",
				   strlen(c->path), sizeof address.sun_path - 1);
	}
	c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0) {
		return failure_set(DISTORCH_E_TOO_MANY, errno, NULL, "no socket can be made: %s",
				   strerror(errno));
	}
	(void)setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size); /* best effort */
	sys = connect_socket(c, c->fd);
	if (sys != 0) {
		return connect_failed(c, sys);
	}
	c->serial++;
	c->n_calls = 0; /* those of an earlier connection are over */
	c->is_lost = false;
	c->lost_code = 0;
	c->lost[0] = '\0';
	return 0;
}

static int keep_server(struct distorch *c, const struct wire_hello_response *response)
{
	struct distorch_server *server = result_new(sizeof *server);

	if (server == NULL) {
		return failure_memory();
	}
	server->socket_path = result_text(server, wire_str(c->path));
	server->version = result_text(server, response->server);
	server->role = result_text(server, response->role);
	server->protocol = response->protocol;
	server->epoch = response->epoch;
	server->client = response->client;
	if (server->socket_path == NULL || server->version == NULL || server->role == NULL) {
		result_free(server);
		return failure_memory();
	}
	result_free(c->server);
	c->server = server;
	return 0;
}

static int say_hello(struct distorch *c)
{
	const uint64_t versions[] = {WIRE_PROTOCOL_MIN, WIRE_PROTOCOL_VERSION};
	const struct wire_hello_request body = {
		.protocol = {.count = 2, .items = versions},
		.client = wire_str(c->client),
		.has_label = c->label != NULL,
		.label = c->label != NULL ? wire_str(c->label) : (struct wire_str){0},
		.has_devices = c->devices.count > 0,
		.devices = c->devices,
	};
	const struct request request = {.method = WIRE_METHOD_HELLO,
					.body = &body,
					.is_hello = true};
	AUTO_ANSWER struct answer answer = {0};
	struct wire_hello_response response;
	int rc;

	c->max_calls = 1;
	rc = client_call(c, &request, &answer, &response);
	if (rc < 0) {
		return rc;
	}
	if (response.protocol < WIRE_PROTOCOL_MIN || response.protocol > WIRE_PROTOCOL_VERSION) {
		return failure_set(DISTORCH_E_VERSION, 0, NULL,
				   "the daemon chose protocol %llu; this library speaks %d to %d",
				   (unsigned long long)response.protocol, WIRE_PROTOCOL_MIN,
				   WIRE_PROTOCOL_VERSION);
	}
	c->max_calls = WIRE_REQUESTS_IN_FLIGHT - 1;
	if (response.limits.requests_in_flight < WIRE_REQUESTS_IN_FLIGHT) {
		c->max_calls = response.limits.requests_in_flight > 1
				       ? (uint32_t)response.limits.requests_in_flight - 1
				       : 1;
	}
	return keep_server(c, &response);
}

static void close_socket(struct distorch *c)
{
	if (c->fd >= 0) {
		(void)close(c->fd); /* who still polls its number sees another serial */
	}
	c->fd = -1;
}

/* Once more when the daemon died between the connect and its answer: another takes over. */
static int open_and_greet(struct distorch *c)
{
	uint64_t deadline = client_now_ms() + c->timeout_ms;
	int rc;

	for (;;) {
		bool was_cut_off;

		close_socket(c);
		rc = open_socket(c);
		if (rc < 0) {
			return rc;
		}
		rc = say_hello(c);
		was_cut_off = c->is_lost && c->lost_code == DISTORCH_E_NO_CONNECTION;
		if (rc == 0 || !was_cut_off || c->is_closed || client_now_ms() >= deadline) {
			return rc;
		}
		pause_unlocked(c);
		if (c->is_closed) {
			return rc;
		}
	}
}

int client_connect(struct distorch *c)
{
	int rc;

	c->is_opening = true;
	rc = open_and_greet(c);
	if (rc == 0) {
		keeper_restore(c);
		failure_clear(c); /* what was refused there is told by events */
	} else {
		close_socket(c); /* it was never usable */
		c->is_lost = true;
	}
	c->is_opening = false;
	keeper_pay(c);
	pthread_cond_broadcast(&c->changed);
	return rc;
}

int distorch_open(const char *path, const struct distorch_options *given, struct distorch **ret_c)
{
	struct distorch_options options = {0};
	char default_path[4096];
	struct distorch *c;
	int rc;

	failure_clear(NULL);
	rc = options_take(given, sizeof options, &options);
	if (rc == 0 && path == NULL) {
		rc = distorch_default_path(default_path, sizeof default_path);
		path = default_path;
	}
	if (rc < 0) {
		return rc;
	}
	c = client_new(path, &options);
	if (c == NULL) {
		return failure_memory();
	}
	rc = keep_devices(c, &options);
	if (rc == 0) {
		pthread_mutex_lock(&c->lock);
		rc = client_connect(c);
		pthread_mutex_unlock(&c->lock);
	}
	if (rc < 0) {
		(void)client_free(c);
		return rc;
	}
	registry_add(c);
	*ret_c = c;
	return 0;
}

struct distorch *distorch_close(struct distorch *c)
{
	if (c == NULL) {
		return NULL;
	}
	if (c->pid != getpid()) {
		return NULL; /* not ours, and its lock may be held for ever */
	}
	pthread_mutex_lock(&c->lock);
	c->is_closed = true;
	keeper_pay(c);
	keeper_part(c);
	if (c->fd >= 0) {
		(void)shutdown(c->fd, SHUT_RDWR); /* wakes who polls it; what was sent arrives */
		(void)close(c->fd);
		c->fd = -1;
	}
	c->serial++;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	client_unref(c);
	return NULL;
}

int distorch_server(struct distorch *c, struct distorch_server **ret_server)
{
	struct distorch_server *server;
	int rc;

	failure_clear(c);
	rc = client_enter(c);
	if (rc < 0) {
		return rc;
	}
	server = result_new(sizeof *server);
	if (server != NULL) {
		*server = *c->server;
		server->socket_path = result_text(server, wire_str(c->server->socket_path));
		server->version = result_text(server, wire_str(c->server->version));
		server->role = result_text(server, wire_str(c->server->role));
	}
	client_leave(c);
	if (server == NULL || server->socket_path == NULL || server->version == NULL ||
	    server->role == NULL) {
		result_free(server);
		return failure_memory();
	}
	*ret_server = server;
	return 0;
}

void distorch_server_free(struct distorch_server *server)
{
	result_free(server);
}

/* ---- entering ---- */

int client_lost(const struct distorch *c)
{
	return failure_set(c->lost_code == 0 ? DISTORCH_E_NO_CONNECTION : c->lost_code, 0,
			   c->lost_code == DISTORCH_E_NO_CONNECTION || c->lost_code == 0
				   ? "the next call connects again"
				   : NULL,
			   "%s", c->lost[0] != '\0' ? c->lost : "the daemon closed the connection");
}

void client_lose(struct distorch *c, int code, const char *reason)
{
	if (c->is_lost) {
		return;
	}
	c->is_lost = true;
	if (c->lost[0] == '\0' || code != DISTORCH_E_NO_CONNECTION) { /* a goodbye came before */
		c->lost_code = code;
		(void)snprintf(c->lost, sizeof c->lost, "%s", reason); /* may be cut */
	}
	/* The number stays taken until close: a thread may be polling it. This wakes it. */
	(void)shutdown(c->fd, SHUT_RDWR);
	pthread_cond_broadcast(&c->changed);
}

static int fail_if_closed(const struct distorch *c)
{
	return !c->is_closed ? 0
			     : failure_set(DISTORCH_E_NO_CONNECTION, 0, NULL,
					   "the connection was closed");
}

int client_lock(struct distorch *c)
{
	int rc = options_need("c", c);

	if (rc < 0) {
		return rc;
	}
	if (c->pid != getpid()) {
		return failure_set(DISTORCH_E_NO_CONNECTION, 0, "open a connection of your own",
				   "this connection belongs to process %d", (int)c->pid);
	}
	pthread_mutex_lock(&c->lock);
	rc = fail_if_closed(c);
	if (rc < 0) {
		pthread_mutex_unlock(&c->lock);
	}
	return rc;
}

/* While another thread connects; lock held. */
static int wait_for_opening(struct distorch *c)
{
	uint64_t deadline = client_now_ms() + c->timeout_ms;

	while (c->is_opening && !c->is_closed) {
		uint64_t now = client_now_ms();

		if (now >= deadline) {
			return failure_set(DISTORCH_E_TIMEOUT, 0,
					   "is the daemon overloaded or stopped?",
					   "the daemon at %s did not answer within %u ms", c->path,
					   c->timeout_ms);
		}
		client_follow(c, deadline - now);
	}
	return fail_if_closed(c);
}

bool client_can_return(const struct distorch *c)
{
	return c->lost_code != DISTORCH_E_BAD_FRAME; /* what speaks no protocol learns none */
}

int client_enter(struct distorch *c)
{
	int rc = client_lock(c);

	if (rc < 0) {
		return rc;
	}
	rc = wait_for_opening(c);
	if (rc == 0 && !c->is_lost && !c->is_led) {
		client_read(c); /* it may have hung up while nobody looked */
	}
	if (rc == 0 && c->is_lost && client_can_return(c)) { /* or in a forked child */
		rc = client_connect(c);
	}
	if (rc < 0) {
		pthread_mutex_unlock(&c->lock);
	}
	return rc;
}

void client_leave(struct distorch *c)
{
	pthread_mutex_unlock(&c->lock);
}
