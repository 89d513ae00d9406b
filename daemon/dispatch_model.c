/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that the core decides: load, attach, map, detach. Those about a selection are in
 * dispatch_select.c, wishes in dispatch_wish.c. Each becomes an event; the answer comes by answer.c.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/os/sys.h"
#include "base/require.h"
#include "base/shard_name.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/describe.h"
#include "daemon/device/device.h"
#include "daemon/dispatch.h"
#include "daemon/format/format.h"
#include "daemon/gather.h"
#include "daemon/ipc/conn.h"
#include "daemon/ipc/peer.h"
#include "daemon/load/file.h"
#include "daemon/load/loader.h"
#include "daemon/persist.h"
#include "daemon/placement.h"
#include "daemon/watch.h"
#include "proto/table.h"

#define NS_PER_MS 1000000U
#define FD_SHARE  2 /* one uid's sources take this part of the descriptors at most */

uint64_t dispatch_ns_of(uint64_t ms)
{
	uint64_t ns;

	return checked_mul(ms, NS_PER_MS, &ns) ? ns : UINT64_MAX - 1;
}

enum core_backing dispatch_default_backing(const struct daemon *daemon)
{
	static const enum core_backing configured[] = {
		[CONFIG_BACKING_AUTO] = CORE_BACKING_AUTO,
		[CONFIG_BACKING_IMAGE] = CORE_BACKING_IMAGE,
		[CONFIG_BACKING_FILE] = CORE_BACKING_FILE,
	};

	return configured[daemon->config->memory_backing];
}

/* The configured one where the request says nothing. False: refused. */
static bool read_backing(const struct call *call, const struct wire_load_request *request,
			 struct load_wish *ret)
{
	static const char *const names[] = {"auto", "image", "file"};

	ret->backing = dispatch_default_backing(call->daemon);
	if (!request->has_backing || request->backing.size == 0) {
		return true;
	}
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (wire_str_is(request->backing, names[i])) {
			ret->backing = (enum core_backing)(CORE_BACKING_AUTO + i);
			ret->insists_backing = ret->backing != CORE_BACKING_AUTO;
			return true;
		}
	}
	call_refuse(call, WIRE_BAD_ARGUMENT, "backing", "backing is auto, image or file");
	return false;
}

/* What others are given may not let them write. True: refused. */
static bool refuse_writable(const struct call *call, const struct file *file,
			    struct core_event *event)
{
	if (event->load.backing != CORE_BACKING_FILE || file->is_read_only) {
		return false;
	}
	if (!event->load.insists_backing) {
		event->load.backing = CORE_BACKING_IMAGE;
		return false;
	}
	call_refuse(call, WIRE_BAD_FD, "backing",
		    "a file that serves as it is has to be opened for reading only, a memfd sealed "
		    "against all writing");
	return true;
}

/* Where its blocks are to lie. False: refused. */
static bool read_placement(const struct call *call, const struct wire_load_request *request,
			   struct load_wish *ret)
{
	const struct placement_words words = PLACEMENT_WORDS(request);

	if (!dispatch_read_placement(call, &words, &ret->placement)) {
		return false;
	}
	if (ret->placement > CORE_PLACEMENT_HOST && ret->insists_backing &&
	    ret->backing != CORE_BACKING_IMAGE) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "backing",
			    "what is placed over devices lies in images; leave backing out");
		return false;
	}
	if (ret->placement > CORE_PLACEMENT_HOST) {
		ret->backing = CORE_BACKING_IMAGE;
		ret->insists_backing = false;
	}
	return true;
}

int dispatch_check_share(const struct call *call, struct err *err)
{
	const uint32_t uid = conn_peer(call->conn)->uid;
	const uint32_t share = clients_max_fds() / FD_SHARE;

	if (file_n_descriptors(uid) + call->n_fds > share) {
		return err_set(err, WIRE_TOO_MANY,
			       "source files of uid %u take %u descriptors already, of %u", uid,
			       file_n_descriptors(uid), share);
	}
	return 0;
}

/* The descriptors of a load or an attach of a single file. NULL: refused. */
static struct file *take_file(const struct call *call)
{
	struct file *file = NULL;
	struct err err = {0};
	int direct_fd;

	if (call->n_fds > 2) { /* they stay the connection's, which never closes them here */
		(void)err_set(&err, WIRE_BAD_FD, "a single file has 1 or 2 descriptors, not %u",
			      call->n_fds);
	} else if (dispatch_check_share(call, &err) == 0) {
		direct_fd = call->n_fds > 1 ? steal_fd(&call->fds[1]) : -1;
		(void)file_take(conn_peer(call->conn)->uid, steal_fd(&call->fds[0]), direct_fd,
				&file, &err);
	}
	if (file == NULL) {
		struct failure failure;

		failure_from_err(&failure, "", &err);
		call_fail(call, &failure);
	}
	return file;
}

struct core_file_key dispatch_key_of(const struct file *file)
{
	return (struct core_file_key){.dev = file->key.dev,
				      .ino = file->key.ino,
				      .size = file->key.size,
				      .mtime_ns = file->key.mtime_ns,
				      .ctime_ns = file->key.ctime_ns,
				      .is_sharded = file->shards != NULL,
				      .is_young = file->key.is_young};
}

/* Into the store, which takes the reference. 0: refused. */
static uint64_t keep_file(const struct call *call, struct file *file, struct core_file_key *ret_key)
{
	uint64_t id = store_add_file(call->daemon->store, file);

	*ret_key = dispatch_key_of(file);
	if (id == 0) {
		file_unref(file);
		call_refuse(call, WIRE_TOO_MANY, NULL, "%d source files are open already",
			    STORE_MAX_FILES);
	}
	return id;
}

bool dispatch_is_alike(const struct daemon *daemon, uint64_t model, const struct file *file)
{
	const struct model_info *info = store_find_model(daemon->store, model);

	return info == NULL || model_info_has_files(info, file);
}

/* True: refused. */
static bool refuse_alike(const struct call *call, uint64_t model, const struct file *file)
{
	if (dispatch_is_alike(call->daemon, model, file)) {
		return false;
	}
	call_refuse(call, WIRE_BAD_FD, "shards",
		    "the files cannot be told from those of another model");
	return true;
}

/*
 * Step with the file presented. What the core makes of it is called after the file at once,
 * also when the load has to wait its turn and nothing happens to the model yet. The core may
 * give the file itself away before a name is wanted.
 */
void dispatch_step_with_file(struct daemon *daemon, struct core_event *event, struct wire_str name)
{
	const struct core_file_key key = *event->load.key;
	struct file *shown = file_ref(store_find_file(daemon->store, event->load.file));
	struct model_info *info;

	daemon_present(daemon, shown);
	daemon_present_name(daemon, name);
	(void)daemon_step(daemon, event);
	daemon_present(daemon, shown);
	daemon_present_name(daemon, name);
	info = daemon_know_model(daemon, core_model_find(daemon->core, &key));
	daemon_present(daemon, NULL);
	if (info != NULL && strcmp(info->path, file_path(shown)) == 0) {
		info->brought = ++daemon->n_brought;
	}
	(void)file_unref(shown);
}

/* One of several files has its own name; what they are together is called after it. */
void dispatch_name_of(const struct file *file, char ret[513])
{
	const char *slash = strrchr(file_path(file), '/');

	(void)snprintf(ret, 513, "%s", slash == NULL ? file_path(file) : slash + 1);
	if (file->shards != NULL) {
		shard_name_of_model(ret);
	}
}

/* True: refused, what was asked for cannot be. */
static bool refuse_load(const struct call *call, const struct load_wish *wish,
			const struct file *file, const struct core_file_key *key,
			struct core_event *event)
{
	uint32_t known = describe_known_format(call->daemon, key); /* of the same content */

	if (key->is_raw && key->is_sharded) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "format",
			    "several files are read for their tensors, not raw");
		return true;
	}
	if (wish->format != FORMAT_AUTO && known != 0 && known != (uint32_t)wish->format) {
		call_refuse(call, WIRE_UNSUPPORTED, "format", "the file is %s, not %s",
			    describe_format(known), describe_format((uint32_t)wish->format));
		return true;
	}
	return refuse_writable(call, file, event) ||
	       refuse_alike(call, core_model_find(call->daemon->core, key), file);
}

static void forget_expected(const struct call *call)
{
	struct pending *pending = client_find_pending(call->client, call->request);

	if (pending != NULL) {
		pending_clear(pending);
	}
}

void dispatch_begin_load(const struct call *call, const struct load_wish *wish, struct file *file)
{
	struct core_file_key key;
	uint8_t fresh_id[16];
	char name[513];
	struct core_event event = {.type = EV_LOAD,
				   .client = call->client->id,
				   .request = call->request,
				   .load = {.file = keep_file(call, file, &key),
					    .key = &key,
					    .fresh_id = fresh_id,
					    .policy = &wish->policy,
					    .format = (uint32_t)wish->format,
					    .placement = wish->placement,
					    .backing = wish->backing,
					    .insists_backing = wish->insists_backing,
					    .no_wait = wish->no_wait,
					    .attach = wish->attach,
					    .map = wish->map}};

	if (event.load.file == 0) {
		forget_expected(call);
		return;
	}
	key.is_raw = wish->format == FORMAT_RAW;
	if (sys_getrandom(fresh_id, sizeof fresh_id) < 0) {
		call_refuse(call, WIRE_INTERNAL, NULL, "the kernel gives no random numbers");
	} else if (!refuse_load(call, wish, file, &key, &event)) {
		if (wish->name[0] != '\0') {
			(void)snprintf(name, sizeof name, "%s", wish->name);
		} else {
			dispatch_name_of(file, name);
		}
		watch_check(call->daemon, core_model_find(call->daemon->core, &key));
		dispatch_step_with_file(call->daemon, &event, wire_str(name));
		return;
	}
	forget_expected(call);
	loader_close_file(call->daemon->loader,
			  store_take_file(call->daemon->store, event.load.file));
}

/* False: refused. */
static bool read_load(const struct call *call, const struct wire_load_request *request,
		      struct load_wish *ret)
{
	*ret = (struct load_wish){.format = FORMAT_AUTO};
	if (!dispatch_read_policy(call, &request->policy, &ret->policy)) {
		return false;
	}
	if (request->has_format &&
	    format_find(request->format.text, request->format.size, &ret->format) < 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "format",
			    "format is auto, safetensors, gguf or raw");
		return false;
	}
	if (!read_backing(call, request, ret) || !read_placement(call, request, ret)) {
		return false;
	}
	ret->no_wait = request->has_no_wait && request->no_wait;
	ret->attach = request->has_attach && request->attach;
	ret->map = ret->attach && request->has_map && request->map;
	if (request->has_name) {
		(void)wire_str_copy(request->name, ret->name, sizeof ret->name);
	}
	return true;
}

void dispatch_load(const struct call *call, const struct wire_load_request *request)
{
	struct load_wish wish;
	struct pending *pending;
	struct file *file;

	if (!read_load(call, request, &wish)) {
		return;
	}
	if (request->has_shards) {
		gather_load(call, request, &wish);
		return;
	}
	pending = call_expect(call);
	if (pending == NULL) {
		return;
	}
	file = take_file(call);
	if (file == NULL) {
		pending_clear(pending);
	} else {
		dispatch_begin_load(call, &wish, file);
	}
}

/* A file, other than an image, can be named by who may not read it. */
static bool may_read(int fd)
{
	int flags = sys_fcntl(fd, F_GETFL, 0);

	return flags >= 0 && (flags & O_PATH) == 0 && (flags & O_ACCMODE) != O_WRONLY;
}

/*
 * The published generation whose image this descriptor is; NULL: of none. The inode of a memfd is
 * that of one image for ever; a file's is that of several models and contents, and only the
 * lease that is known still tells which of them its holder maps.
 */
static const struct model_info *find_by_image(const struct daemon *daemon, int fd, uint64_t known)
{
	const struct model_info *model = NULL;
	struct core_lease_view lease;
	struct core_model_view view;
	struct statx status;
	bool is_known = core_lease_get(daemon->core, known, &lease);
	dev_t dev;

	if (sys_statx(fd, AT_STATX_DONT_SYNC, &status) < 0) { /* a file's server may not answer */
		return NULL;
	}
	dev = makedev(status.stx_dev_major, status.stx_dev_minor);
	while ((model = store_next_model(daemon->store, model)) != NULL) {
		if (model->current.table_fd < 0 || model->current.image_ino != status.stx_ino ||
		    model->current.image_dev != dev) {
			continue;
		}
		if (model->current.n_sums > 0) {
			return model;
		}
		if (is_known && lease.model == model->id &&
		    core_model_get(daemon->core, model->id, &view) &&
		    lease.generation == view.generation) {
			return may_read(fd) ? model : NULL;
		}
	}
	return NULL;
}

/* A lease whose connection broke: the image that its holder still maps proves its right. */
static void reassert(const struct call *call, const struct wire_attach_request *request)
{
	uint64_t known = request->has_epoch
				 ? persist_find_lease(call->daemon, request->epoch, request->lease)
				 : 0;
	const struct model_info *model =
		call->n_fds == 1 ? find_by_image(call->daemon, call->fds[0], known) : NULL;
	struct core_model_view view = {0};
	struct core_event event = {.type = EV_ATTACH,
				   .client = call->client->id,
				   .request = call->request};

	if (!request->has_epoch || request->has_model || call->n_fds != 1) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "lease",
			    "asserting a lease again takes its epoch and one image descriptor");
		return;
	}
	if (model == NULL || !core_model_get(call->daemon->core, model->id, &view)) {
		call_refuse(call, WIRE_NOT_RESIDENT, "lease",
			    "no resident model has this image any more");
		return;
	}
	watch_check(call->daemon, model->id);
	event.attach.model = model->id;
	event.attach.generation = view.generation;
	event.attach.ghost = known;
	if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

/* Is that all the bytes of the lease? Of one that is not known nothing else can be said. */
static bool is_all_of(const struct daemon *daemon, uint64_t id, struct wire_list range)
{
	struct core_lease_view lease;
	struct core_segment_view segment;
	uint64_t first = 1;
	uint64_t count = 0;
	uint32_t cursor = 0;

	if (!wire_list_next(&range, NULL, &first) || !wire_list_next(&range, NULL, &count) ||
	    first != 0 || count == 0) {
		return false;
	}
	while (core_lease_get(daemon->core, id, &lease) &&
	       core_segment_next(daemon->core, lease.model, &cursor, &segment)) {
		if (core_segment_is_of(&segment, lease.generation) &&
		    (segment.is_block ? lease.has_blocks : segment.index >= count)) {
			return false;
		}
	}
	return true;
}

void dispatch_unmapped(const struct call *call, const struct wire_unmapped_request *request)
{
	uint64_t lease = request->has_epoch
				 ? persist_find_lease(call->daemon, request->epoch, request->lease)
				 : request->lease;

	if (request->has_segments && !is_all_of(call->daemon, lease, request->segments)) {
		call_refuse(call, WIRE_UNSUPPORTED, "segments",
			    "what is unmapped is counted by whole leases only: leave segments out "
			    "once all of lease %llu is unmapped",
			    (unsigned long long)request->lease);
		return;
	}
	dispatch_lease(call, EV_UNMAPPED, lease);
}

/* As the core does: who presents a file wants its tensors; where nobody read them, its bytes. */
static uint64_t find_presented(const struct daemon *daemon, const struct core_file_key *key)
{
	struct core_file_key raw = *key;
	uint64_t model = core_model_find(daemon->core, key);

	raw.is_raw = true;
	return model != 0 ? model : core_model_find(daemon->core, &raw);
}

void dispatch_begin_attach(const struct call *call, bool map, struct file *file)
{
	struct core_file_key key;
	struct core_event event = {.type = EV_ATTACH,
				   .client = call->client->id,
				   .request = call->request,
				   .attach = {.file = keep_file(call, file, &key),
					      .key = &key,
					      .map = map}};
	uint64_t model = event.attach.file == 0 ? 0 : find_presented(call->daemon, &key);

	if (event.attach.file == 0) {
		forget_expected(call);
		return;
	}
	if (refuse_alike(call, model, file)) {
		forget_expected(call);
		loader_close_file(call->daemon->loader,
				  store_take_file(call->daemon->store, event.attach.file));
		return;
	}
	watch_check(call->daemon, model);
	(void)daemon_step(call->daemon, &event);
}

static void attach_named(const struct call *call, const struct wire_attach_request *request)
{
	struct failure failure;
	struct core_event event = {.type = EV_ATTACH,
				   .client = call->client->id,
				   .request = call->request,
				   .attach = {.map = request->has_map && request->map}};

	if (dispatch_find_model(call, request->model, &event.attach.model, &failure) < 0) {
		call_fail(call, &failure);
	} else if (call_expect(call) != NULL) {
		watch_check(call->daemon, event.attach.model);
		(void)daemon_step(call->daemon, &event);
	}
}

void dispatch_attach(const struct call *call, const struct wire_attach_request *request)
{
	struct pending *pending;
	struct file *file;

	if (request->has_lease) {
		reassert(call, request);
	} else if (request->has_model == (call->n_fds > 0 || request->has_shards)) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "model",
			    "name a model or pass its file, one of the two");
	} else if (request->has_model) {
		attach_named(call, request);
	} else if (request->has_shards) {
		gather_attach(call, request);
	} else if ((pending = call_expect(call)) != NULL) {
		file = take_file(call);
		if (file == NULL) {
			pending_clear(pending);
		} else {
			dispatch_begin_attach(call, request->has_map && request->map, file);
		}
	}
}

void dispatch_lease(const struct call *call, enum core_event_type type, uint64_t lease)
{
	struct core_event event = {.type = type,
				   .client = call->client->id,
				   .request = call->request,
				   .lease = {.lease = lease}};

	if (call_expect(call) != NULL) {
		(void)daemon_step(call->daemon, &event);
	}
}

/* What the descriptors of a map are of. */
static uint32_t describe_mapped(const struct daemon *daemon, const struct image_range *range,
				uint32_t n_images, struct wire_place *ret)
{
	struct core_segment_view segment;
	uint32_t n_places = 0;

	while (n_places < n_images && describe_find_image(daemon, range->model, range->generation,
							  range->first + n_places, &segment)) {
		ret[n_places++] = (struct wire_place){
			.device = wire_str("cpu"),
			.bytes = segment.size,
			.backing = wire_str(describe_backing(segment.backing)),
		};
	}
	return n_places;
}

/* Images of a lease that did not come with it. */
void dispatch_map(const struct call *call, const struct wire_map_request *request)
{
	struct core_lease_view lease;
	struct core_event event = {.type = EV_MAPPED, .client = call->client->id};
	struct wire_list segments = request->segments;
	struct wire_place places[DESCRIBE_MAX_IMAGES];
	struct wire_map_response response = {.segments = {.items = places}};
	struct image_range range = {0};
	int fds[DESCRIBE_MAX_IMAGES];
	uint32_t n_fds = 0;
	uint64_t count = 0;
	int code;

	if (request->has_blocks) {
		dispatch_map_blocks(call, request);
		return;
	}
	if (!request->has_segments || !wire_list_next(&segments, NULL, &range.first) ||
	    !wire_list_next(&segments, NULL, &count) || count == 0) {
		call_refuse(call, WIRE_BAD_ARGUMENT, "segments", "say [first, count]");
		return;
	}
	if (!core_lease_get(call->daemon->core, request->lease, &lease) ||
	    lease.client != call->client->id) {
		call_refuse(call, WIRE_NOT_FOUND, "lease", "no such lease");
		return;
	}
	range.model = lease.model;
	range.generation = lease.generation;
	range.count = count < DESCRIBE_MAX_IMAGES ? (uint32_t)count : DESCRIBE_MAX_IMAGES;
	code = client_may_have_fds(call->daemon, call->client, 1)
		       ? describe_images(call->daemon, &range, fds, &n_fds)
		       : -WIRE_TOO_MANY;
	if (code < 0) {
		for (uint32_t i = 0; i < n_fds; i++) {
			(void)close(fds[i]); /* read-only, nothing to lose */
		}
		call_refuse(call, code == -WIRE_INTERNAL ? WIRE_BAD_ARGUMENT : WIRE_TOO_MANY,
			    "segments",
			    code == -WIRE_INTERNAL ? "the lease has no segment %llu"
						   : "no descriptor is left for segment %llu",
			    (unsigned long long)range.first + n_fds);
		return;
	}
	response.segments.count = describe_mapped(call->daemon, &range, n_fds, places);
	event.lease.lease = lease.id;
	(void)daemon_step(call->daemon, &event);
	call_answer_fds(call, &response, fds, n_fds);
}
