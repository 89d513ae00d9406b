/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libdistorch: the public interface of distorchd, a daemon that owns the weights of models
 * and hands them without a copy to every process that asks. What is named docs/... below lies in
 * the source, and in PREFIX/share/doc/distorchd where this is installed.
 *
 * Common rules, not repeated below:
 *  - Functions return 0, or a negative -DISTORCH_E_...; then out-parameters are untouched
 *    and distorch_error() tells more. Out-parameters come last.
 *  - Lists of codes have what belongs to the call. Any that asks the daemon may also fail with
 *    NO_CONNECTION, SHUTTING_DOWN, TIMEOUT (no answer in time), TOO_MANY (calls at once; places or
 *    descriptors in the daemon; long answers to this user that nobody reads), BAD_ARGUMENT and
 *    TOO_LARGE (a text, a list or a number, or all of them together, is over the limits in
 *    docs/protocol.md), NO_MEMORY and INTERNAL.
 *  - Strings are UTF-8 and end with a NUL. Names and paths come from files and other users:
 *    make control characters harmless before you print them. NULL means "absent". A NULL where
 *    a string has to be given, or within a list of strings, is -DISTORCH_E_BAD_ARGUMENT, and so is
 *    the path of a resident model, or of a folder of such, that is not UTF-8: say the model's id.
 *    Files are loaded and attached by any path.
 *  - Numbers that may be absent are DISTORCH_ABSENT then. Sizes are bytes, times milliseconds.
 *  - Structures that you fill begin with 'size': set it to sizeof of the structure and the
 *    rest to zero, so that a newer library knows which members you know. A member that is set and
 *    that this library does not know is -DISTORCH_E_UNSUPPORTED, a wrong 'size' _BAD_ARGUMENT.
 *    Structures that the library fills may grow at their end; they are reached through pointers
 *    only.
 *  - What a function returns in 'ret_x' is yours; free it by the function named there. All
 *    pointers inside it die with it.
 *  - Any thread may call at any time, also several on one connection. A call blocks until
 *    the daemon has answered, at most 'timeout_ms' of the connection unless it says else. The daemon
 *    has 31 calls of a connection at once: a further one waits for the end of one of them, after
 *    'timeout_ms' it is -DISTORCH_E_TOO_MANY. Who has more open a second connection.
 *  - No call raises SIGPIPE; every descriptor is close-on-exec.
 *  - When the daemon ends, calls in flight fail with DISTORCH_E_NO_CONNECTION (or _SHUTTING_DOWN,
 *    where it ended in order), and the next call connects again; of distorch_next_event see there.
 *    What is mapped stays as it is; a small thread of the library, which runs from the first
 *    weights or subscription on, connects and asserts the leases again when a daemon is back.
 *    One that it does not have any more is the event "lost"; a subscription begins with
 *    "overflow" then, because something may have been missed. Reservations have ended.
 *  - After fork() the child's first call opens a connection of its own. Weights attached
 *    before stay readable in the child; the daemon counts them for the parent only.
 *  - All of it is there since 0.1.
 */
#ifndef DISTORCH_H
#define DISTORCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#	define DISTORCH_PUBLIC __attribute__((visibility("default")))
#else
#	define DISTORCH_PUBLIC
#endif

#define DISTORCH_ABSENT  UINT64_MAX /* a number that was not given */
#define DISTORCH_FOREVER UINT32_MAX /* a wait without an end */

/* ---- Errors ---- */

/*
 * The protocol's words under the same numbers (wire 'code' in brackets), and from 1000 on
 * what only a library can run into. Meanings never change.
 */
enum distorch_code {
	DISTORCH_E_BAD_FRAME = 1,
	DISTORCH_E_VERSION = 2,
	DISTORCH_E_UNKNOWN_METHOD = 3,
	DISTORCH_E_UNKNOWN_FIELD = 4,
	DISTORCH_E_BAD_ARGUMENT = 5,
	DISTORCH_E_BAD_FD = 6,
	DISTORCH_E_BAD_FILE = 7,
	DISTORCH_E_UNSUPPORTED = 8,
	DISTORCH_E_NOT_FOUND = 9,
	DISTORCH_E_NOT_RESIDENT = 10,
	DISTORCH_E_NOT_ALLOWED = 11,
	DISTORCH_E_BUSY = 12,
	DISTORCH_E_PINNED = 13,
	DISTORCH_E_NO_MEMORY = 14, /* the daemon's; running out in this process is INTERNAL */
	DISTORCH_E_TOO_MANY = 15,
	DISTORCH_E_TOO_LARGE = 16,
	DISTORCH_E_STALE = 17,
	DISTORCH_E_DEVICE_LOST = 18,
	DISTORCH_E_IO = 19,
	DISTORCH_E_CHANGED_WHILE_READING = 20,
	DISTORCH_E_CANCELLED = 21,
	DISTORCH_E_TIMEOUT = 22,
	DISTORCH_E_SHUTTING_DOWN = 23,
	DISTORCH_E_INTERNAL = 24,
	DISTORCH_E_NO_CONNECTION = 1000 /* "no-connection": nobody answers, or it was cut off */
};

/* A process that uses or still maps bytes. */
struct distorch_holder {
	uint64_t client; /* the daemon's number of the connection */
	uint32_t pid;
	uint32_t uid;
	const char *comm; /* its command, or the label it gave */
	uint64_t held_bytes;
};

/* Why a call failed. Members below 'hint' depend on the code. */
struct distorch_error {
	int code;            /* enum distorch_code; 0: nothing failed */
	int exit_code;       /* what a command line should end with */
	bool is_retryable;   /* the same call may succeed later */
	const char *word;    /* the wire's word of 'code': "no-memory" */
	const char *message; /* names the thing and the number; never NULL */
	const char *hint;    /* what to do, or NULL */
	const char *field;   /* which argument */
	const char *device;  /* which device */
	uint64_t need;       /* bytes, as the seven below */
	uint64_t budget;
	uint64_t free;
	uint64_t evictable;
	uint64_t held;
	uint64_t foreign;   /* taken by others on the machine, and a card's context of ours */
	uint64_t in_use;    /* of the device: leased, or mapped by a process */
	uint64_t pinned;    /* of the device: pinned and not in use */
	uint64_t sys_errno; /* the system's errno behind it */
	uint64_t offset;    /* byte in the file */
	uint64_t current;   /* the current generation */
	uint64_t min;       /* what is allowed */
	uint64_t max;
	size_t n_holders;
	const struct distorch_holder *const *holders; /* who stands in the way */
	size_t n_uids;
	const uint64_t *uids; /* whose pins do */
	size_t n_candidates;
	const char *const *candidates; /* models an ambiguous name may mean: id and path */
};

struct distorch; /* a connection */

/*
 * The failure of the calling thread's last call on 'c', or on anything when 'c' is NULL (so
 * after a failed distorch_open). Never NULL; 'code' is 0 when that call succeeded. Belongs to
 * the thread, valid until its next call into the library. Does not block.
 */
DISTORCH_PUBLIC const struct distorch_error *distorch_error(const struct distorch *c);

/* The word ("no-memory"), a sentence, the exit status of a code, and whether the same call may
 * succeed later. It may be given negative; for unknown ones those of DISTORCH_E_INTERNAL. Static
 * storage. */
DISTORCH_PUBLIC const char *distorch_code_word(int code);
DISTORCH_PUBLIC const char *distorch_code_text(int code);
DISTORCH_PUBLIC int distorch_code_exit(int code);
DISTORCH_PUBLIC bool distorch_code_is_retryable(int code);

/* ---- Connection ---- */

struct distorch_options {
	size_t size;
	const char *client;  /* "name/version" of the program; NULL: the library's */
	const char *label;   /* how listings call this client; NULL: its command */
	uint32_t timeout_ms; /* longest wait for an answer; 0: 30,000 */
	/* UUIDs of the devices that this process sees, in the order in which it counts them, at most
	 * 64: then cuda:0 in what it asks for is the first card of these, and others of its sort
	 * (cards, simulated ones) cannot be meant. None: as the daemon counts, which is by bus.
	 * Answers name devices as the daemon does; struct distorch_device has the UUID of each.
	 * Whatever asks for a device takes its number, "cpu", its UUID or the first 8 letters or
	 * more, or a card's own name ("RTX 4090"): -DISTORCH_E_NOT_FOUND where none has it,
	 * -DISTORCH_E_BAD_ARGUMENT where several have. */
	const char *const *device_uuids;
	size_t n_device_uuids;
};

/* Who answered the hello. */
struct distorch_server {
	const char *socket_path;
	const char *version; /* "distorchd/0.1.0" */
	const char *role;    /* "user" or "admin" */
	uint64_t protocol;
	uint64_t epoch;  /* differs after each start of the daemon */
	uint64_t client; /* this connection's number in listings */
};

/* The library's version, "0.1.0". */
DISTORCH_PUBLIC const char *distorch_version(void);

/*
 * Write the path that distorch_open(NULL, ...) would use into 'buffer' of 'buffer_size' bytes:
 * $DISTORCH_SOCKET, else $XDG_RUNTIME_DIR/distorchd/distorchd.sock if that exists, else
 * /run/distorchd/distorchd.sock. Does not block. Codes: TOO_LARGE, BAD_ARGUMENT (no 'buffer').
 */
DISTORCH_PUBLIC int distorch_default_path(char *buffer, size_t buffer_size);

/*
 * Connect to the daemon at 'path' (NULL: the default) and say hello. 'options' may be NULL.
 * Strings in 'options' are copied. Close with distorch_close. Blocks at most 'timeout_ms'.
 * Codes: NO_CONNECTION, NOT_ALLOWED, VERSION, TOO_MANY, TIMEOUT, SHUTTING_DOWN, BAD_ARGUMENT,
 * UNSUPPORTED.
 */
DISTORCH_PUBLIC int distorch_open(const char *path, const struct distorch_options *options,
				  struct distorch **ret_c);

/*
 * End the connection; NULL is fine. Returns NULL. No other call may be running on it or be
 * made afterwards. Weights stay mapped and usable until their last unref; the daemon counts
 * them as held by this process until then. Does not block.
 */
DISTORCH_PUBLIC struct distorch *distorch_close(struct distorch *c);

/* What the hello told. Does not ask again. Free with distorch_server_free. */
DISTORCH_PUBLIC int distorch_server(struct distorch *c, struct distorch_server **ret_server);

/* Ask for an answer and wait for it. */
DISTORCH_PUBLIC int distorch_ping(struct distorch *c);

/*
 * Cancel every running call of this connection that was given 'tag' in its options (0: all that
 * wait for a load or a move). Those calls return -DISTORCH_E_CANCELLED, or their result if that
 * came first. Does not wait for them. Not for signal handlers: there, set a flag and let the
 * progress callback return it. Returns 0, or -DISTORCH_E_NOT_FOUND when no such call runs.
 */
DISTORCH_PUBLIC int distorch_cancel(struct distorch *c, uint64_t tag);

/* ---- Models ---- */

/* Bytes of a model on one device. */
struct distorch_place {
	const char *device; /* "cpu", "cuda:0", "sim:0" */
	uint64_t bytes;
	const char *backing; /* "image", "file" (its own page cache) or "device" */
	/* Of bytes, what is tensors' own and no rounding up; DISTORCH_ABSENT where it is not said. */
	uint64_t tensor_bytes;
};

/* One model as listings show it. */
struct distorch_model {
	const char *id;   /* 32 hex digits; any unique prefix of 4 or more names the model */
	const char *name; /* NULL, as path and label, without a right to the model */
	const char *path; /* for display only */
	const char *label;
	uint32_t uid;      /* who registered it */
	uint64_t bytes;    /* of the file */
	const char *state; /* registered loading resident partial draining failed quarantined */
	uint64_t progress_bytes; /* read so far, while loading */
	size_t n_where;
	const struct distorch_place *const *where;
	size_t n_stays;
	const char *const *stays; /* "in-use", "pinned", "kept", "ttl" */
	bool keep;
	bool pinned;
	uint64_t ttl_left_ms;
	int64_t priority;
	uint64_t leases;
	uint64_t last_used_ms; /* ago */
	uint64_t generation;
	uint64_t tensors;
	uint64_t blocks;
	const char *format;
	size_t n_users;
	const struct distorch_holder *const *users; /* the first of those who lease it */
	/* By which its blocks were placed; NULL: by virtual VRAM, or all in images. */
	const char *allocation;
	size_t n_older;
	/* What generations before it still have, for those who lease or map them. */
	const struct distorch_place *const *older;
	bool moving; /* its blocks are being moved; it serves meanwhile */
};

struct distorch_models {
	size_t n_models;
	const struct distorch_model *const *models;
};

/* What happened to one model in an unload, or to make room for a load. */
struct distorch_outcome {
	const char *id;
	const char *name;
	const char *reason;
	uint64_t bytes;
	size_t n_holders;
	const struct distorch_holder *const *holders;
};

/* Which members of a policy are meant; the others stay as they were. */
enum distorch_said {
	DISTORCH_SAID_PIN = 1,
	DISTORCH_SAID_KEEP = 2,
	DISTORCH_SAID_TTL = 4,
	DISTORCH_SAID_PRIORITY = 8,
	DISTORCH_SAID_FOR = 16
};

/* Wishes of the caller's user about a model. */
struct distorch_policy {
	size_t size;
	uint32_t said;    /* enum distorch_said, added up */
	bool pin;         /* never evict */
	bool keep;        /* survive a selective unload */
	int32_t priority; /* -100 to 100; lower ones are evicted first */
	uint64_t ttl_ms;  /* evict after this long without use; 0 withdraws the wish */
	uint64_t for_ms;  /* pin and keep said here lapse after this long; not 0 */
};

/* ---- Weights: the tensors of an attached model ---- */

/* One tensor. Borrowed from its weights. */
struct distorch_tensor {
	const char *name;
	const char
		*dtype; /* safetensors' word: "F32", "BF16", ...; ggml's: "Q4_K", "IQ2_XXS", ... */
	uint32_t bits;  /* 'group' elements */
	uint32_t rank;
	const uint64_t *shape; /* 'rank' numbers of elements, the slowest dimension first */
	uint64_t bytes;
	void *data;         /* NULL where nothing is mapped; aligned as in the file */
	uint64_t offset;    /* of its first byte in the image of 'shard' */
	uint32_t shard;     /* which image, from 0 */
	uint32_t block;     /* the planner's unit it belongs to: distorch_weights_block */
	uint32_t group;     /* elements of a row that lie together: 1 unless it is quantised */
	const char *device; /* where its bytes are: "cpu", "cuda:0", "sim:0"; NULL: nowhere here */
	const char *uuid;   /* of that device; NULL for cpu */
	uint64_t block_offset; /* of its first byte in its block, where that is not on cpu */
	uint64_t device_data;  /* its address on a card, after distorch_map_cuda; else 0 */
	int device_ordinal;    /* of that card in this process, as CUDA counts them here */
};

/* Tensors that lie together and move together. Borrowed from its weights. */
struct distorch_block {
	const char *name;
	uint64_t bytes;     /* of its tensors; where it is not on cpu, with the gaps between them */
	const char *device; /* as of a tensor, and the next one */
	const char *uuid;
	uint32_t n_tensors;
	void *data; /* its bytes on a device whose memory this process can see; else NULL: on cpu
		       the tensors lie in the images */
};

/*
 * A lease on one generation of a model, its bytes mapped into this process: those on the host, and
 * those on simulated devices; where a tensor lies says its 'device'. The memory is
 * private and writable: a write copies the touched pages for this process and nobody else
 * sees it. What it is a copy-on-write view of is an image that nobody can change, or, for a model
 * whose place says the backing "file", the file itself: who writes that file changes pages that
 * you have not written, who cuts it makes reading behind its end a SIGBUS, and the event "lost"
 * tells of both afterwards (of writes through a mapping late, or never). Load with the backing
 * "image", or pin, where that must not be.
 * Counted: it lives until the last distorch_weights_unref, also after the connection was closed.
 * Every function below is safe from any thread and does not block, and what it returns is
 * borrowed until the last unref.
 */
struct distorch_weights;

/* One more owner. Returns 'weights'. */
DISTORCH_PUBLIC struct distorch_weights *distorch_weights_ref(struct distorch_weights *weights);

/*
 * One owner less; NULL is fine. Returns NULL. The last one unmaps the memory and then tells the
 * daemon, without waiting for its answer: where the connection was closed before, a thread does that
 * by a short one of its own.
 */
DISTORCH_PUBLIC struct distorch_weights *distorch_weights_unref(struct distorch_weights *weights);

DISTORCH_PUBLIC const char *distorch_weights_model(const struct distorch_weights *weights); /* id */
DISTORCH_PUBLIC uint64_t distorch_weights_generation(const struct distorch_weights *weights);

/* The lease's number, as events say it: no other one has it, in no life of the daemon. It is
 * another one after the library has asserted the lease again; weights that are lost keep theirs,
 * and the event "lost" says that. 0: they only describe. */
DISTORCH_PUBLIC uint64_t distorch_weights_lease(const struct distorch_weights *weights);

/*
 * The image of shard 'shard', 2 MiB-aligned: the file's bytes at the file's offsets. Where tensors
 * lie on devices, be it that somebody else placed them so, it is sparse: what is there of the
 * file are its header and the tensors whose 'device' is "cpu", the rest reads as zeros, each page
 * of which takes memory that is charged to the model. NULL, and a size of 0, beyond the last shard
 * or where nothing is mapped. 'ret_bytes' may be NULL.
 */
DISTORCH_PUBLIC void *distorch_weights_base(const struct distorch_weights *weights, uint32_t shard,
					    uint64_t *ret_bytes);

/*
 * A new read-only descriptor of the image of 'shard' (sealed), or of the file, for loaders that want one
 * (/proc/self/fd/N). Not that of a sparse image (above): they would take its zeros for weights.
 * The caller closes it. Bytes reached through it are not counted once the lease has ended. Its
 * offset and flags are its own; but where this process may not open the file itself, or there is no
 * /proc, common to all who have one of it: use pread, and leave the flags alone. Returns the
 * descriptor, or -DISTORCH_E_NOT_FOUND or -DISTORCH_E_TOO_MANY.
 */
DISTORCH_PUBLIC int distorch_weights_fd(const struct distorch_weights *weights, uint32_t shard);

/* Images: one a file of the model, in the order of the files' names. */
DISTORCH_PUBLIC uint32_t distorch_weights_n_shards(const struct distorch_weights *weights);
DISTORCH_PUBLIC uint32_t distorch_weights_n_tensors(const struct distorch_weights *weights);

/* A tensor by its number, in file order and file by file, or by its name; NULL when there is none
 * (and for the name NULL). */
DISTORCH_PUBLIC const struct distorch_tensor *
distorch_weights_tensor(const struct distorch_weights *weights, uint32_t index);
DISTORCH_PUBLIC const struct distorch_tensor *
distorch_weights_find(struct distorch_weights *weights, const char *name);

/* Blocks in the table's order; NULL beyond the last one. */
DISTORCH_PUBLIC uint32_t distorch_weights_n_blocks(const struct distorch_weights *weights);
DISTORCH_PUBLIC const struct distorch_block *
distorch_weights_block(const struct distorch_weights *weights, uint32_t index);

/*
 * Have the blocks that lie on cards in this process too: each is imported by the CUDA driver, which is
 * loaded for that, into the primary context of its card, and the 'device_data' of its tensors is
 * filled in. Once done there is nothing more to do; weights without such blocks need nothing.
 * The memory is shared: it can be read only, and a write is a fault that ends this process's use of the
 * card. The last unref waits for all that this process does on the card, and unmaps it then.
 * Blocks. Codes: UNSUPPORTED (no driver, a library without CUDA, a card that is hidden here),
 * NOT_FOUND (the lease has ended: the daemon was restarted), NO_MEMORY, DEVICE_LOST, NO_CONNECTION.
 */
DISTORCH_PUBLIC int distorch_map_cuda(struct distorch_weights *weights);

/* All names in file order, each with its NUL, one after the other: one call for a binding
 * that wants them all. 'ret_size' counts the NULs. */
DISTORCH_PUBLIC const char *distorch_weights_names(const struct distorch_weights *weights,
						   size_t *ret_size);

/* ---- Load, attach, unload ---- */

/* How far a load or a move is. Borrowed for the callback. */
struct distorch_progress {
	const char *model; /* id, or NULL before it is known */
	const char *phase; /* queued header room reading checking stalled */
	uint64_t bytes;
	uint64_t total; /* 0 before it is known */
};

/*
 * Called by the thread that waits, at each news and at least four times a second. Return
 * other than 0 to cancel. May call the library, but not free what the call uses.
 */
typedef int (*distorch_progress_fn)(const struct distorch_progress *progress, void *user);

struct distorch_load_options {
	size_t size;
	const char *name;              /* display name of a file that the daemon does not know yet;
					  NULL: the file's base name, of several files what they
					  are together: "model.safetensors" */
	const char *format;            /* auto, safetensors, gguf; raw: one U8 tensor "data" of the
					  whole file, a model of its own; NULL: auto */
	const char *allocation;        /* NULL: cpu */
	const char *compute;           /* device that computes; NULL: none */
	const char *backing;           /* image (nobody can change it), file (its page cache),
					  auto; NULL: as the daemon is configured */
	struct distorch_policy policy; /* its 'size' may be 0 when nothing is said */
	bool no_wait; /* return once the load has begun; it then outlives the connection */
	uint64_t tag; /* for distorch_cancel */
	distorch_progress_fn progress; /* or NULL */
	void *user;                    /* handed to 'progress' */
	/* more about 'allocation', as in struct distorch_placement */
	uint64_t virtual_vram;
	const char *const *donors;
	size_t n_donors;
	const char *strategy;
	const char *granularity;
};

/* What a load did. */
struct distorch_loaded {
	const struct distorch_model *model;
	const char *source; /* begun, disk, ram (was resident), joined */
	uint64_t duration_ms;
	size_t n_evicted;
	const struct distorch_outcome *const *evicted; /* what made room */
	size_t n_warnings;
	const char *const *warnings; /* of its placement, as distorch_plan has them */
};

/*
 * Load the file at 'path', or join a running load of it, and wait until it is resident. A
 * file that is resident is not read again. A path that names a model of several files means all of
 * them: its index ("m.safetensors.index.json"), a file that an index beside it lists,
 * "m.safetensors" where only its index is there, a part of a GGUF file ("m-00001-of-00003.gguf").
 * With the format raw it means the one file. With 'ret_weights' it is attached too, in the
 * same step. 'options' and either ret_ may be NULL; ret_weights must be with no_wait.
 *
 * Free '*ret_loaded' with distorch_loaded_free; unref '*ret_weights'. Waits as long as the
 * daemon answers pings; cancel by the callback or distorch_cancel.
 * Codes: NOT_FOUND and NOT_ALLOWED (opening the file; also not allowed: an allocation, while it
 * lies on devices for another user), BAD_ARGUMENT (an option), BAD_FILE, UNSUPPORTED, NO_MEMORY,
 * BUSY (what it needs is draining; another process holds an fcntl lease on the file), TOO_MANY,
 * IO, CHANGED_WHILE_READING, DEVICE_LOST, CANCELLED, TIMEOUT (also: the disk does not answer).
 */
DISTORCH_PUBLIC int distorch_load(struct distorch *c, const char *path,
				  const struct distorch_load_options *options,
				  struct distorch_loaded **ret_loaded,
				  struct distorch_weights **ret_weights);

/* The same for one file that is open for reading, whatever it is part of. 'fd' stays the caller's
 * and may be closed on return; its offset is not used. Also -DISTORCH_E_BAD_FD. */
DISTORCH_PUBLIC int distorch_load_fd(struct distorch *c, int fd,
				     const struct distorch_load_options *options,
				     struct distorch_loaded **ret_loaded,
				     struct distorch_weights **ret_weights);

/*
 * Attach a resident model, never load. 'model' is a path, a name or an id; what exists as a
 * file is opened and presented to the daemon, which proves the right to it.
 * Codes: NOT_RESIDENT (load it), NOT_FOUND, NOT_ALLOWED, BAD_ARGUMENT (ambiguous; candidates
 * tell), STALE.
 */
DISTORCH_PUBLIC int distorch_attach(struct distorch *c, const char *model,
				    struct distorch_weights **ret_weights);
DISTORCH_PUBLIC int distorch_attach_fd(struct distorch *c, int fd,
				       struct distorch_weights **ret_weights);

/* Which models an unload means: all conditions must hold; none at all is refused. */
struct distorch_select {
	size_t size;
	const char *const *models; /* names, unique id prefixes or paths */
	size_t n_models;
	const char *const *names; /* glob patterns on names */
	size_t n_names;
	const char *under;  /* models whose file lies below this folder */
	const char *device; /* with bytes on this device */
	uint64_t idle_ms;   /* not used for this long; 0: no condition */
	bool not_kept;      /* leave models with keep or pin */
	bool mine;          /* only what the caller's user has a wish or lease on */
	bool all;           /* every model (of the caller's user, unless admin) */
	const char *mode; /* NULL or "idle"; "recall": ask those who use it to let it go; "force" is
			       refused: UNSUPPORTED */
	uint64_t recall_ms; /* with "recall": how long they are given; 0: the daemon's own time */
};

struct distorch_report {
	size_t n_kept;
	const struct distorch_outcome *const *kept;
	size_t n_unloaded;
	const struct distorch_outcome *const *unloaded;
	size_t n_held;
	const struct distorch_outcome *const *held;
	uint64_t total_bytes; /* freed */
};

/* Free memory selectively. Models that somebody leases are held and go when the last lease
 * ends. With a 'mode' it waits as long as the daemon answers pings: with "recall" that is
 * 'recall_ms', and up to 10 s more for what is given back. Free with distorch_report_free.
 * Codes: NOT_FOUND, BAD_ARGUMENT, UNSUPPORTED. */
DISTORCH_PUBLIC int distorch_unload(struct distorch *c, const struct distorch_select *select,
				    struct distorch_report **ret_report);

/* ---- Blocks over devices ---- */

/* Where the blocks of a model are to lie; docs/allocation-strings.md has the grammar. */
struct distorch_placement {
	size_t size;
	const char *
		allocation; /* "cuda:0,2.5gb;cpu,*", "cuda:1", "auto"; NULL: virtual_vram says it */
	const char *compute;       /* the device that computes; NULL: the daemon's choice */
	uint64_t virtual_vram;     /* bytes that are to live off 'compute'; 0: not said */
	const char *const *donors; /* the devices that take them, in this order */
	size_t n_donors;
	const char *strategy;    /* "contiguous", "spread"; NULL: the allocation's own */
	const char *granularity; /* "block", or "tensor": each tensor is a block; NULL: block */
	uint64_t tag;            /* for distorch_cancel */
	distorch_progress_fn progress; /* of distorch_place, or NULL */
	void *user;                    /* handed to 'progress' */
};

/* What a move did. */
struct distorch_moved {
	const struct distorch_model *model;
	uint64_t moved_bytes; /* copied for it */
	uint64_t duration_ms;
	size_t n_evicted;
	const struct distorch_outcome *const *evicted; /* what made room */
	size_t n_warnings;
	const char *const *warnings; /* as distorch_plan has them */
};

/*
 * Move the blocks of a resident model between devices, all or nothing. Who leases it keeps what he
 * has mapped; weights attached afterwards have the blocks where they lie now. Waits as long as
 * the daemon answers pings. 'ret_moved' may be NULL; free with distorch_moved_free. Codes:
 * BAD_ARGUMENT (naming item and column of the allocation), NOT_FOUND, NOT_RESIDENT, NOT_ALLOWED (it
 * lies on devices for another user), NO_MEMORY, BUSY (a device that is to take something is
 * draining), DEVICE_LOST, CANCELLED (by distorch_cancel, or an unload of it by name); where something
 * of it has to be read from its file also IO, BAD_FILE and CHANGED_WHILE_READING.
 */
DISTORCH_PUBLIC int distorch_place(struct distorch *c, const char *model,
				   const struct distorch_placement *placement,
				   struct distorch_moved **ret_moved);
DISTORCH_PUBLIC void distorch_moved_free(struct distorch_moved *moved);

/* What a plan puts on one device. */
struct distorch_share {
	const char *device;
	uint64_t bytes;
	uint64_t blocks;
	uint64_t free_after;
};

/* One block of a plan. */
struct distorch_planned_block {
	const char *name;
	uint64_t bytes;
	uint64_t tensors; /* 0 of distorch_plan_blocks */
	const char *device;
};

struct distorch_plan {
	size_t n_devices;
	const struct distorch_share *const *devices;
	size_t n_blocks;
	const struct distorch_planned_block *const *blocks;
	size_t n_warnings;
	const char *const *warnings;
	uint64_t moved_per_pass; /* bytes to the compute device by one pass over the model */
	const char *compute;     /* that device; NULL where the daemon does not tell */
	uint64_t floor_ns; /* no pass is faster than that copy; ABSENT where nothing is copied or
				    a link's speed is not known */
};

/*
 * What distorch_place would do; changes nothing. Free with distorch_plan_free. Codes: as there, and
 * UNSUPPORTED: it plans by the blocks that the model has, so a 'granularity' other than the one by
 * which it lies cannot be planned, though distorch_place takes it. What that would give say
 * distorchctl plan FILE --granularity tensor, which plans by the file itself, and, with each tensor
 * as a block, distorch_plan_blocks. For "cpu" alone a granularity means nothing, here and there.
 */
DISTORCH_PUBLIC int distorch_plan(struct distorch *c, const char *model,
				  const struct distorch_placement *placement,
				  struct distorch_plan **ret_plan);

/*
 * What a load of a model of these blocks would do, which need be nowhere; nothing is loaded or changed.
 * Blocks are 1 to 512, in the order in which they are used, each with its name, of at most 4,200
 * bytes, and its bytes. Names tell the parts of a model as tensors' do: "vae.decoder.up.0" is of the
 * VAE, and what has no number between dots is of the head. Each takes room as one tensor would; for
 * a 'granularity' of "tensor", which is refused, give each tensor as a block. Both arrays stay the
 * caller's. Free with distorch_plan_free. Codes: BAD_ARGUMENT (naming item and column of the
 * allocation; no block; a longer name; more bytes than can be added up), TOO_MANY, TOO_LARGE (long
 * names: all have to fit a packet of 64 KiB), NO_MEMORY, BUSY (draining), DEVICE_LOST.
 */
DISTORCH_PUBLIC int distorch_plan_blocks(struct distorch *c, const char *const *names,
					 const uint64_t *bytes, size_t n_blocks,
					 const struct distorch_placement *placement,
					 struct distorch_plan **ret_plan);
DISTORCH_PUBLIC void distorch_plan_free(struct distorch_plan *plan);

struct distorch_reserve_options {
	size_t size;
	uint64_t ttl_ms; /* it ends by itself after this long; 0: it does not */
	uint64_t
		recall_ms; /* ask those who lease something there to let it go, and wait so long; 0:
			       nobody is asked */
};

struct distorch_reservation {
	uint64_t token;
	size_t n_evicted;
	const struct distorch_outcome *const *evicted; /* what made room */
};

/*
 * Room on a device for activations, or for a program that knows nothing of the daemon: what
 * nobody uses is evicted for it, nothing is put there while it lasts, and what was displaced comes
 * back afterwards. It ends by distorch_release, its time, or the end of the connection, that of
 * this process or of the daemon included; the library does not make it again. 'options' may be NULL.
 * Waits as long as the daemon answers pings. Free with distorch_reservation_free, which does not end
 * it. Codes: NOT_FOUND (the device), BAD_ARGUMENT, NO_MEMORY, DEVICE_LOST, BUSY (its holders tell
 * who would not let go; or the device is draining), TIMEOUT (no answer to a ping).
 */
DISTORCH_PUBLIC int distorch_reserve(struct distorch *c, const char *device, uint64_t bytes,
				     const struct distorch_reserve_options *options,
				     struct distorch_reservation **ret_reservation);
/* -DISTORCH_E_NOT_FOUND when it has ended: a token is of one connection, and never given again. */
DISTORCH_PUBLIC int distorch_release(struct distorch *c, uint64_t token);
DISTORCH_PUBLIC void distorch_reservation_free(struct distorch_reservation *reservation);

/* Change the wishes of the caller's user about a model, or its label; either may be NULL. Free
 * '*ret_model' (or pass NULL) with distorch_model_free. Pins have no limit but the budget. A label
 * is one for all: who loaded the model first and administrators say it, "" takes it away. Codes:
 * NOT_FOUND (also without a right to the model), NOT_ALLOWED (a label), BAD_ARGUMENT (also: an
 * ambiguous name). */
DISTORCH_PUBLIC int distorch_set(struct distorch *c, const char *model,
				 const struct distorch_policy *policy, const char *label,
				 struct distorch_model **ret_model);

/* ---- Looking ---- */

struct distorch_list_filter {
	size_t size;
	const char *device; /* with bytes on this device */
	bool mine;
	bool all; /* also those merely registered */
};

/* Models that hold bytes, are being loaded or wished for, or whose last load failed (until they are
 * unloaded by name). 'filter' may be NULL. Free with distorch_models_free. */
DISTORCH_PUBLIC int distorch_list(struct distorch *c, const struct distorch_list_filter *filter,
				  struct distorch_models **ret_models);

/* What one user said about a model. */
struct distorch_wish {
	uint32_t uid;
	bool pin;
	bool keep;
	uint64_t ttl_ms;
	int64_t priority;
	uint64_t pin_left_ms; /* then the pin lapses, and the keep; absent: it does not */
	uint64_t keep_left_ms;
};

/* One file of a model that has several. */
struct distorch_shard {
	const char *name;
	uint64_t bytes;
};

/* All about one model. */
struct distorch_detail {
	const struct distorch_model *model;
	uint64_t page_size;  /* obtained for the image */
	uint64_t huge_bytes; /* of the image in 2 MiB pages */
	const char *notice;  /* why less than asked was obtained */
	const char *backing;
	const char *loaded_from; /* file or store */
	uint64_t load_ms;
	const char *checksum; /* hex; of the bytes as they lie: another one when they are moved */
	size_t n_clients;
	const struct distorch_holder *const *clients;
	size_t n_wishes;
	const struct distorch_wish *const *wishes;
	size_t n_shards; /* 0: it is a single file */
	const struct distorch_shard *const *shards;
	/* Of a model whose blocks are not all in RAM: where each of them lies, in the table's order;
	 * "file" is what has gone from where it lay. Else none. */
	size_t n_places;
	const char *const *places;
};

/* Free '*ret_detail' with distorch_detail_free. '*ret_table' (NULL: not wanted) describes the
 * tensors and maps nothing: their 'data' is NULL; unref it. Codes: NOT_FOUND, BAD_ARGUMENT, and
 * NOT_RESIDENT when the table is wanted of a model that is not in memory. */
DISTORCH_PUBLIC int distorch_show(struct distorch *c, const char *model,
				  struct distorch_detail **ret_detail,
				  struct distorch_weights **ret_table);

/* A device that another one reads from without the host between. */
struct distorch_peer {
	const char *device;
	uint64_t link; /* bytes a second */
};

/* Memory that can hold copies, and its account. */
struct distorch_device {
	const char *name;
	const char *uuid;
	const char *state; /* ok, starting, lost, unavailable */
	uint64_t total;    /* what the machine has */
	uint64_t budget;
	uint64_t used; /* charged, held included */
	uint64_t held; /* dropped, but still mapped by a client */
	uint64_t reserved;
	uint64_t free; /* budget less what is charged */
	uint64_t models;
	bool draining;        /* takes no new loads */
	const char *product;  /* "RTX 4090", or NULL, as the next one */
	const char *pci;      /* "0000:01:00.0" */
	uint64_t foreign;     /* bytes that others on the machine use of it, and a card's context
				of ours takes or would take */
	uint64_t dropping;    /* bytes of 'used' that are being given back; 0: none */
	uint64_t temperature; /* in degrees Celsius */
	uint64_t last_xid;    /* the driver's number of its last fault */
	const char *text;     /* why it is not ok, or NULL */
	uint64_t link;        /* bytes a second between host and device */
	uint64_t pid;         /* of its worker process */
	/* What a load can have at once: less than 'free' where the machine has less, more by what is
	 * being dropped. Then what may be evicted for it, and what may once the loads under way have
	 * ended. */
	uint64_t room;
	uint64_t evictable;
	uint64_t later;
	uint64_t loading;     /* bytes of 'used' for loads under way */
	uint64_t granularity; /* what a block takes is a multiple of it */
	size_t n_peers;
	const struct distorch_peer *const *peers;
};

struct distorch_devices {
	size_t n_devices;
	const struct distorch_device *const *devices;
	const char *notice; /* of distorch_budget_save, or NULL */
};

/* Free with distorch_devices_free. */
DISTORCH_PUBLIC int distorch_devices(struct distorch *c, struct distorch_devices **ret_devices);

/* Show the budgets (device NULL) or set one, which needs an admin: -DISTORCH_E_NOT_ALLOWED.
 * 'ret_devices' may be NULL; free with distorch_devices_free. */
DISTORCH_PUBLIC int distorch_budget(struct distorch *c, const char *device, uint64_t bytes,
				    struct distorch_devices **ret_devices);

/*
 * Set it as distorch_budget does and keep it over restarts and boots; 'bytes' DISTORCH_ABSENT, or
 * 'device' NULL (RAM): keep that of now. The notice of '*ret_devices' says what ranks above it, if
 * anything does. When it cannot be saved nothing is done. Codes: NOT_ALLOWED, BAD_ARGUMENT,
 * UNSUPPORTED (the daemon has no folder to save in), IO, BUSY.
 */
DISTORCH_PUBLIC int distorch_budget_save(struct distorch *c, const char *device, uint64_t bytes,
					 struct distorch_devices **ret_devices);

/* A connection, or a process that still maps bytes of a closed one. */
struct distorch_client {
	uint64_t client;
	uint32_t pid;
	uint32_t uid;
	const char *comm;
	const char *label;
	const char *library; /* name/version it said in its hello */
	bool connected;      /* false: its process lives and maps something still */
	bool admin;
	uint64_t leases;
	uint64_t held_bytes; /* leased or still mapped */
	uint64_t age_ms;     /* since it connected, or since a restart that it was there before */
};

struct distorch_clients {
	size_t n_clients;
	const struct distorch_client *const *clients;
};

/* Others' clients are shown to admins only. Free with distorch_clients_free. */
DISTORCH_PUBLIC int distorch_clients(struct distorch *c, struct distorch_clients **ret_clients);

/* One line of history. */
struct distorch_record {
	uint64_t seq;
	uint64_t age_ms;
	uint64_t time_ms; /* since 1970 */
	const char *type; /* load.done, evicted, refused, ... */
	const char *model;
	const char *name;
	const char *device;
	uint64_t bytes;
	uint64_t duration_ms;
	const char *why;
	const char *for_whom;
};

struct distorch_records {
	size_t n_records;
	const struct distorch_record *const *records;
};

struct distorch_history_filter {
	size_t size;
	const char *model;        /* one model: why it is where it is; NULL: all models */
	const char *const *types; /* only these */
	size_t n_types;
	uint64_t since_ms; /* only what is younger than this; 0: all */
};

/* What happened, oldest first. 'filter' may be NULL. Free with distorch_records_free. */
DISTORCH_PUBLIC int distorch_history(struct distorch *c,
				     const struct distorch_history_filter *filter,
				     struct distorch_records **ret_records);

/* The daemon at a glance. */
struct distorch_status {
	const char *version;
	uint64_t epoch;
	uint64_t uptime_ms;
	uint64_t restarts;
	bool survives_restart;
	size_t n_devices;
	const struct distorch_device *const *devices;
	uint64_t models;
	uint64_t pinned;
	uint64_t loading;
	uint64_t clients;
	uint64_t hits;   /* attaches and loads served from memory */
	uint64_t misses; /* loads that read a file */
	uint64_t bytes_read;
	uint64_t bytes_saved; /* not read because they were resident */
	uint64_t evictions;
	uint64_t refusals;
	uint64_t open_fds;  /* descriptors of the daemon */
	uint64_t rss_bytes; /* its own memory, images apart */
	size_t n_last;
	const struct distorch_record *const *last;
	const char
		*config_fault; /* of its files, so that an earlier configuration is used; or NULL */
	const char *state_fault; /* why what is said is not saved, where it should be; or NULL */
	const char *no_cards;    /* why no GPU is used; NULL: some are */
};

/* Free with distorch_status_free. */
DISTORCH_PUBLIC int distorch_status(struct distorch *c, struct distorch_status **ret_status);

/* One effective configuration value. */
struct distorch_setting {
	const char *key; /* section.key */
	const char *value;
	const char *source; /* default, FILE:LINE, state.json's path, environment, command line */
};

struct distorch_settings {
	size_t n_settings;
	const struct distorch_setting *const *settings;
};

/* Free with distorch_settings_free. */
DISTORCH_PUBLIC int distorch_config(struct distorch *c, struct distorch_settings **ret_settings);

/* What verify found out about one copy. */
struct distorch_check {
	const char *id;
	const char *name;
	bool ok;
	uint64_t bytes;
	uint64_t offset; /* start of the first 64 MiB range that differs */
	const char *text;
};

struct distorch_checks {
	size_t n_checks;
	const struct distorch_check *const *checks;
};

/*
 * Hash held copies again and compare with what was read; 'n_models' 0 means all. Needs an
 * admin: -DISTORCH_E_NOT_ALLOWED. Waits as long as the daemon answers pings. Free with
 * distorch_checks_free.
 */
DISTORCH_PUBLIC int distorch_verify(struct distorch *c, const char *const *models, size_t n_models,
				    struct distorch_checks **ret_checks);

struct distorch_reloaded {
	size_t n_applied;
	const char *const *applied; /* keys of settings that changed and are in effect */
	size_t n_later;
	const char *const *later; /* that changed and are in effect from the next start on */
	const char *notice;       /* of distorch_config_set: what stands above it, or NULL */
};

/*
 * Have the daemon read its configuration again, as SIGHUP does. A fault in it changes nothing:
 * -DISTORCH_E_BAD_ARGUMENT, naming file, line and the nearest key. Needs an admin:
 * -DISTORCH_E_NOT_ALLOWED; _BUSY while another reload runs. Free with distorch_reloaded_free.
 */
DISTORCH_PUBLIC int distorch_reload(struct distorch *c, struct distorch_reloaded **ret_reloaded);

/*
 * Save the setting 'key' ("section.key") in the daemon's state: it ranks above its files and
 * below its environment and command line. 'value' NULL: forget what was saved, which reads the
 * files again. When it cannot be saved nothing is done. 'ret_reloaded' may be NULL. Codes:
 * NOT_ALLOWED, BAD_ARGUMENT (as in a file), NOT_FOUND (nothing was saved), UNSUPPORTED (the daemon
 * has no folder to save in), IO, BUSY. Free with distorch_reloaded_free.
 */
DISTORCH_PUBLIC int distorch_config_set(struct distorch *c, const char *key, const char *value,
					struct distorch_reloaded **ret_reloaded);
DISTORCH_PUBLIC void distorch_reloaded_free(struct distorch_reloaded *reloaded);

enum distorch_drain_order { DISTORCH_DRAIN_LOOK, DISTORCH_DRAIN_BEGIN, DISTORCH_DRAIN_END };

/* What is still under way on the device, or on all. */
struct distorch_drain {
	bool draining;
	uint64_t loads;
	size_t n_loading;
	const char *const *loading; /* names of the first of them */
	uint64_t leases; /* of what has tensors there; those of closed connections included that
			    still map */
	size_t n_holders;
	const struct distorch_holder *const *holders; /* whose they are, the largest first */
	size_t n_reservers;
	/* Likewise who has room reserved there: a device is let go of when they are gone. */
	const struct distorch_holder *const *reservers;
};

/*
 * Have the daemon refuse new loads (-DISTORCH_E_BUSY) and serve what is resident, take them
 * again, or only say what is under way; returns at once. 'device' NULL: every one. A restart
 * of the daemon ends it. Needs an admin: -DISTORCH_E_NOT_ALLOWED; _NOT_FOUND: no such device.
 * 'ret_drain' may be NULL; free with distorch_drain_free.
 */
DISTORCH_PUBLIC int distorch_drain(struct distorch *c, const char *device,
				   enum distorch_drain_order order,
				   struct distorch_drain **ret_drain);
DISTORCH_PUBLIC void distorch_drain_free(struct distorch_drain *drain);

/* One model that is loaded at each start. */
struct distorch_warm_entry {
	const char *path;
	const char *source; /* where it is listed: FILE:LINE, state.json's path, ... */
	const char *state;  /* waiting opening loading loaded unloaded failed */
	const char *model;  /* id, or NULL before it is known */
	uint64_t bytes;
	const char *text; /* why it is not loaded, or NULL */
};

struct distorch_warm {
	size_t n_entries;
	const struct distorch_warm_entry *const *entries; /* in the order of loading */
};

enum distorch_warm_order { DISTORCH_WARM_LOOK, DISTORCH_WARM_ADD, DISTORCH_WARM_REMOVE };

/*
 * The models that the daemon loads at each start, opened by itself with its own rights. Add 'path'
 * (absolute), which is then loaded now too, or remove one as it is listed, which stays in memory;
 * NULL to look. '*ret_warm' (may be NULL) is the list afterwards, without waiting for a load; free
 * it with distorch_warm_free. Codes: NOT_ALLOWED (you, or the daemon, may not), NOT_FOUND, BAD_FILE,
 * BAD_ARGUMENT (one of the configuration is removed there), TOO_MANY, UNSUPPORTED (the daemon has
 * no folder to save in), IO, TIMEOUT (its disk does not answer), BUSY. Nothing was done then.
 */
DISTORCH_PUBLIC int distorch_warm(struct distorch *c, enum distorch_warm_order order,
				  const char *path, struct distorch_warm **ret_warm);
DISTORCH_PUBLIC void distorch_warm_free(struct distorch_warm *warm);

/* Numbers of the daemon. */
struct distorch_metrics {
	const char *text; /* OpenMetrics, ends with "# EOF"; docs/metrics.md tells what is in it */
};

/* Needs an admin: -DISTORCH_E_NOT_ALLOWED. Free with distorch_metrics_free. */
DISTORCH_PUBLIC int distorch_metrics(struct distorch *c, struct distorch_metrics **ret_metrics);

/* One descriptor that is parked for the daemon's next life. */
struct distorch_parked {
	const char *name;  /* under which it is parked */
	const char *kind;  /* ledger, socket, table, index, image, source, placement */
	const char *state; /* kept: whoever keeps it has said so; sent: no word about it yet */
	const char *model; /* id; NULL, as the next two, for what belongs to no model */
	const char *model_name;
	uint64_t generation;
	uint64_t bytes; /* of the memory, or of the file behind a source */
};

/* What whoever restarts the daemon (systemd, distorchd-hold) keeps for it. */
struct distorch_store {
	bool survives_restart; /* somebody keeps it, as far as is known */
	uint64_t descriptors;
	uint64_t max_descriptors; /* 0: nobody keeps any */
	uint64_t bytes;           /* of the images among them */
	size_t n_parked;
	const struct distorch_parked *const *parked;
};

/* Needs an admin: -DISTORCH_E_NOT_ALLOWED. Free with distorch_store_free. */
DISTORCH_PUBLIC int distorch_store(struct distorch *c, struct distorch_store **ret_store);

/* End the daemon in order, as SIGTERM does. Needs an admin: -DISTORCH_E_NOT_ALLOWED. */
DISTORCH_PUBLIC int distorch_shutdown(struct distorch *c);

/* ---- Events ---- */

/*
 * Something happened; docs/protocol.md says when. Which members are there depends on 'type', the
 * others are NULL or DISTORCH_ABSENT. Two have names of their own here: 'why' is "reason" of the
 * protocol in a recall, lost and goodbye, 'device' is "name" in a device.
 *
 *  load.progress  model phase bytes total
 *  load.done      model error (NULL: it is loaded)
 *  model.state    seq model name state
 *  record         seq record, and model and name of that
 *  evicted        seq model name device bytes why for_whom
 *  pressure       seq device free wanted
 *  recall         lease why for_whom deadline_ms
 *  lost           lease why
 *  device         seq device uuid state
 *  overflow       seq
 *  goodbye        code why
 */
struct distorch_event {
	const char *type; /* "model.state", "record", "evicted", "recall", "goodbye", ... */
	uint64_t seq;     /* of the subscription */
	const char *model;
	const char *name;
	const char *state;
	const char *phase;
	const char *device;
	const char *uuid;
	const char *why;
	const char *for_whom;
	const char *code;
	uint64_t lease;
	uint64_t bytes;
	uint64_t total;
	uint64_t free;
	uint64_t wanted;
	uint64_t deadline_ms;
	const struct distorch_record *record;
	const struct distorch_error *error; /* of "load.done" */
};

struct distorch_event_filter {
	size_t size;
	const char *const *events; /* names; none: all */
	size_t n_events;
	const char *const *models; /* ids; none: all */
	size_t n_models;
};

/* Have events sent from now on; a later call replaces the filter of an earlier one. 'filter' may be
 * NULL. Read them with distorch_next_event. */
DISTORCH_PUBLIC int distorch_subscribe(struct distorch *c,
				       const struct distorch_event_filter *filter);

/*
 * Take the oldest event, waiting at most 'timeout_ms' (0: look only; DISTORCH_FOREVER).
 * Events that arrive while other calls wait are queued; when more than 1,024 are, those that
 * nobody owns go and one "overflow" stands for them. "load.done", "recall", "lost" and "goodbye" stay,
 * of a lease only its newest "recall" and "lost"; of more than 4,096 of these the oldest go, into an
 * "overflow" too. Free with distorch_event_free.
 * With weights or a subscription the library connects again by itself when the daemon has ended,
 * and the call waits on. Without either it fails, after the last queued event, until another call
 * has connected again. Codes: TIMEOUT, NO_CONNECTION, or what the event "goodbye" said:
 * SHUTTING_DOWN after an end in order.
 */
DISTORCH_PUBLIC int distorch_next_event(struct distorch *c, uint32_t timeout_ms,
					struct distorch_event **ret_event);

/*
 * The same of the events "recall" alone: somebody waits for what a lease of this connection holds.
 * They come without a subscription; others stay queued. For a thread that answers them.
 */
DISTORCH_PUBLIC int distorch_next_recall(struct distorch *c, uint32_t timeout_ms,
					 struct distorch_event **ret_event);

/* ---- Freeing what was returned; NULL is fine ---- */
DISTORCH_PUBLIC void distorch_server_free(struct distorch_server *server);
DISTORCH_PUBLIC void distorch_loaded_free(struct distorch_loaded *loaded);
DISTORCH_PUBLIC void distorch_report_free(struct distorch_report *report);
DISTORCH_PUBLIC void distorch_model_free(struct distorch_model *model);
DISTORCH_PUBLIC void distorch_models_free(struct distorch_models *models);
DISTORCH_PUBLIC void distorch_detail_free(struct distorch_detail *detail);
DISTORCH_PUBLIC void distorch_devices_free(struct distorch_devices *devices);
DISTORCH_PUBLIC void distorch_clients_free(struct distorch_clients *clients);
DISTORCH_PUBLIC void distorch_records_free(struct distorch_records *records);
DISTORCH_PUBLIC void distorch_status_free(struct distorch_status *status);
DISTORCH_PUBLIC void distorch_settings_free(struct distorch_settings *settings);
DISTORCH_PUBLIC void distorch_checks_free(struct distorch_checks *checks);
DISTORCH_PUBLIC void distorch_metrics_free(struct distorch_metrics *metrics);
DISTORCH_PUBLIC void distorch_store_free(struct distorch_store *store);
DISTORCH_PUBLIC void distorch_event_free(struct distorch_event *event);

#ifdef __cplusplus
}
#endif

#endif
