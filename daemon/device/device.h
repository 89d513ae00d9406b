/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device: memory that can hold copies. One contract, several backends: "host" in the daemon;
 * "cuda" and "sim" in a worker process a device, which the daemon reaches by "remote";
 * everything above sees names, bytes and pages only.
 *
 * Common contract of the calls. They may block, unless said otherwise; never call back; never
 * log. They return 0 or a negative wire code with 'err' filled, and on failure leave their
 * out-parameters untouched. 'err' may be NULL. An extent may be used by several threads at
 * once, fills and reads of different ranges included; alloc, seal, lock, release and import of
 * one extent are one thread's. After seal nothing changes the bytes; release ends the extent from
 * any state. A release that fails means that the bytes are not free: a worker of which
 * that is true is lost, and its end frees them.
 */
#ifndef DEVICE_DEVICE_H
#define DEVICE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct device_ops;

#define DEVICE_OPS_VERSION  2
#define DEVICE_NAME_SIZE    64
#define DEVICE_UUID_SIZE    64
#define DEVICE_PCI_SIZE     16
#define DEVICE_MAX_EXPORTS  32 /* in one call: as many as a packet takes */
#define DEVICE_MAX_PEERS    15
#define DEVICE_MAX_CARDS    (DEVICE_MAX_PEERS + 1) /* of a machine, that are used */
#define DEVICE_MAX_BACKENDS 8
#define DEVICE_NOTICE_SIZE  160

/* An open device. A backend's own begins with it. */
struct device {
	const struct device_ops *ops;
	char name[DEVICE_NAME_SIZE];
};

/* A device's own record of a copy's bytes. A backend's own begins with it. */
struct extent {
	const struct device_ops *ops;
	const struct device *device; /* it lies on; to be compared only: it may be closed already */
	uint64_t bytes;
	void *verification; /* the loader's own, guarded by its lock: what reads it; else NULL */
};

/* A device that one can be copied to from another, without the host between. */
struct device_peer {
	char uuid[DEVICE_UUID_SIZE];
	uint64_t bytes_per_s; /* 0: not measured */
};

/* Of the host only the first two; the others are empty or 0 where they are not known. */
struct device_info {
	uint64_t total_bytes;
	uint64_t granularity;           /* an allocation is a multiple of it */
	char uuid[DEVICE_UUID_SIZE];    /* "GPU-...", as the driver prints it; "SIM-..." */
	char product[DEVICE_NAME_SIZE]; /* the card's own name */
	char pci[DEVICE_PCI_SIZE];      /* "0000:01:00.0" */
	uint64_t foreign_bytes;         /* taken by others than the daemon, as last seen */
	bool is_foreign_old;            /* it was not counted this time: of a look before */
	uint64_t bytes_per_s;           /* of its link to the host: measured, or configured */
	uint32_t temperature;           /* degrees Celsius */
	uint32_t n_xids;   /* faults that the driver has reported since it was opened */
	uint32_t last_xid; /* the gravest of those since the look before; 0: none ever */
	uint32_t n_peers;
	struct device_peer peers[DEVICE_MAX_PEERS];
};

struct device_alloc {
	const char *name; /* shown by the kernel where it shows names; borrowed for the call */
	uint64_t bytes;   /* more than 0 */
	bool hugepages;   /* try for the large page size */
	bool is_sparse;   /* only parts are filled: no memory behind the rest, which is zeros */
};

/* Bytes of a file, to be put into an extent. */
struct device_source {
	int fd; /* borrowed for the call */
	uint64_t offset;
	uint64_t bytes;
};

/* What the bytes really lie in. */
struct device_pages {
	uint64_t page_bytes;             /* the size most of it has */
	uint64_t huge_bytes;             /* in pages of 2 MiB or more */
	char notice[DEVICE_NOTICE_SIZE]; /* why less than asked for; empty: nothing to say */
};

struct device_ops {
	uint32_t version; /* DEVICE_OPS_VERSION */
	const char *name; /* of the backend */

	/* Names of the devices present, at most 'max_names'; returns how many there are. */
	uint32_t (*probe)(char (*names)[DEVICE_NAME_SIZE], uint32_t max_names);
	int (*open)(const char *name, struct device **ret, struct err *err);
	void (*close)(struct device *device); /* extents may outlive it, but for import and alloc */
	int (*info)(const struct device *device, struct device_info *ret, struct err *err);
	/* Bytes of the device that an extent of 'bytes' takes. Does not block. */
	uint64_t (*charge)(const struct device *device, uint64_t bytes);

	/* Zeroed or not yet backed memory; no byte of it was anybody else's. */
	int (*alloc)(struct device *device, const struct device_alloc *request, struct extent **ret,
		     struct err *err);
	/*
	 * One read of the source into the extent at 'offset'. '*ret_bytes' says how much came,
	 * as read(2) does: less than asked is no failure, 0 is the end of the file. A failed
	 * read is WIRE_IO with errno in err->sys, EINTR included: the caller decides. The
	 * source's bytes are taken on return; they may arrive as late as at seal, which then
	 * says how that went: so reading the next ones overlaps with their transfer.
	 */
	int (*fill)(struct extent *extent, uint64_t offset, const struct device_source *source,
		    uint64_t *ret_bytes, struct err *err);
	int (*read)(const struct extent *extent, uint64_t offset, void *bytes, uint64_t n_bytes,
		    struct err *err);
	/* The bytes are final. Later fills are refused with WIRE_NOT_ALLOWED. */
	int (*seal)(struct extent *extent, struct err *err);
	int (*release)(struct extent *extent, struct err *err);

	/*
	 * A new descriptor of a sealed extent, which the caller closes; who holds it can read
	 * and not write. Before seal: WIRE_NOT_ALLOWED. Does not block where the memory is this
	 * process's own; "remote" waits for its worker, as in every call but charge.
	 */
	int (*export)(const struct extent *extent, int *ret_fd, struct err *err);
	/* A sealed extent around what an export gave; 'fd' stays the caller's. */
	int (*import)(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		      struct err *err);

	/* ---- optional: registration puts what is right for a device without them ---- */

	/* As export, of several extents of one device, DEVICE_MAX_EXPORTS at most: all, or none;
	 * absent: one after the other. */
	int (*export_all)(const struct extent *const *extents, uint32_t n_extents, int *ret_fds,
			  struct err *err);
	/* From a sealed extent into one that is not; absent: through the host. */
	int (*copy)(struct extent *to, const struct extent *from, struct err *err);
	/* Take the memory behind a range before it is written. Failure is none: it gets slower. */
	void (*prepare)(struct extent *extent, uint64_t offset, uint64_t n_bytes);
	/* The bytes in this process's memory until seal; NULL where it cannot see them. */
	const void *(*bytes)(const struct extent *extent);
	/* A sealed extent around a file that others may still change: it takes no memory of its
	 * own. The file is opened again, WIRE_UNSUPPORTED where we may not; 'fd' stays the
	 * caller's. Exports can read and not write, are of one description, and open nothing.
	 * Absent: the device cannot. */
	int (*borrow)(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		      struct err *err);
	/* Keep a sealed extent out of the swap until its release; said again: nothing to do. Such
	 * memory stays mapped. Absent: the device's memory is never swapped out. */
	int (*lock)(struct extent *extent, struct err *err);
	/* Of a filled extent that is not yet sealed, or of what seal remembered. */
	void (*pages)(const struct extent *extent, struct device_pages *ret);
	/* Memory behind a sealed extent of which only parts were filled: a process that maps it
	 * and reads the rest takes memory for that too. Does not block. 0: it cannot grow;
	 * absent: nothing can. */
	uint64_t (*taken)(const struct extent *extent);
};

/*
 * Make a backend known. REQUIREs the version and every mandatory member. 'ops' is copied.
 * The host backend is always known. Before the first device_open; not thread-safe.
 */
void device_register(const struct device_ops *ops);

/* The backend of that name or NULL. */
const struct device_ops *device_backend_find(const char *name);

/* WIRE_NOT_FOUND for an unknown backend or device. */
int device_open(const char *backend, const char *name, struct device **ret, struct err *err);
struct device *device_close(struct device *device);
int device_info(const struct device *device, struct device_info *ret, struct err *err);
uint64_t device_charge(const struct device *device, uint64_t bytes);
int device_alloc(struct device *device, const struct device_alloc *request, struct extent **ret,
		 struct err *err);
int device_fill(struct extent *extent, uint64_t offset, const struct device_source *source,
		uint64_t *ret_bytes, struct err *err);
int device_read(const struct extent *extent, uint64_t offset, void *bytes, uint64_t n_bytes,
		struct err *err);
int device_seal(struct extent *extent, struct err *err);
int device_release(struct extent *extent, struct err *err); /* NULL is fine */
int device_export(const struct extent *extent, int *ret_fd, struct err *err);
int device_export_all(const struct extent *const *extents, uint32_t n_extents, int *ret_fds,
		      struct err *err);
int device_import(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		  struct err *err);
int device_borrow(struct device *device, int fd, uint64_t bytes, struct extent **ret,
		  struct err *err);
int device_copy(struct extent *to, const struct extent *from, struct err *err);
void device_prepare(struct extent *extent, uint64_t offset, uint64_t n_bytes);
const void *device_bytes(const struct extent *extent);
int device_lock(struct extent *extent, struct err *err);
void device_pages(const struct extent *extent, struct device_pages *ret);
uint64_t device_taken(const struct extent *extent);

/* The host's memory: an extent is one memfd, from seal on immutable. Its one device is "cpu". */
extern const struct device_ops host_device_ops;

#ifdef DISTORCH_WITH_CUDA
/*
 * NVIDIA's cards: "cuda:0" by PCI address, or a UUID. To be registered in a worker only: it loads
 * the driver.
 */
extern const struct device_ops cuda_device_ops;
#endif

#ifdef DISTORCH_TESTING
/* Flip one byte of a sealed host extent, as a fault of ours or of the machine would. */
int host_corrupt(struct extent *base, uint64_t offset, struct err *err);
#endif

#endif
