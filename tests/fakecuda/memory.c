/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual memory management: handles, reservations, mappings, sharing. See fake.h. */
#include "tests/fakecuda/fake.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct handle {
	struct handle *next;
	int fd;
	uint64_t size;
	CUmemAllocationProp properties;
};

struct range { /* reserved, or mapped */
	struct range *next;
	CUdeviceptr at;
	size_t size;
	int ordinal; /* whose memory is mapped */
	int protection;
};

static struct handle *handles;
static struct range *reservations;
static struct range *mappings;

static void *pointer_of(CUdeviceptr at)
{
	return (void *)(uintptr_t)at;
}

static struct handle **find_handle(CUmemGenericAllocationHandle wanted)
{
	struct handle **link = &handles;

	while (*link != NULL && (uintptr_t)*link != (uintptr_t)wanted) {
		link = &(*link)->next;
	}
	return link;
}

/* The range that begins at 'at' and is as long. */
static struct range **find_range(struct range **list, CUdeviceptr at, size_t size)
{
	struct range **link = list;

	while (*link != NULL && ((*link)->at != at || (*link)->size != size)) {
		link = &(*link)->next;
	}
	return link;
}

static bool holds(const struct range *range, CUdeviceptr at, size_t size)
{
	return at >= range->at && at - range->at <= range->size &&
	       size <= range->size - (at - range->at);
}

static bool overlaps(const struct range *list, CUdeviceptr at, size_t size)
{
	for (; list != NULL; list = list->next) {
		if (at < list->at + list->size && list->at < at + size) {
			return true;
		}
	}
	return false;
}

static struct range *add_range(struct range **list, CUdeviceptr at, size_t size)
{
	struct range *range = calloc(1, sizeof *range);

	if (range == NULL) {
		abort();
	}
	range->at = at;
	range->size = size;
	range->next = *list;
	*list = range;
	fake_n_objects++;
	return range;
}

static void drop_range(struct range **link)
{
	struct range *range = *link;

	*link = range->next;
	free(range);
	fake_n_objects--;
}

bool fake_is_mapped(CUdeviceptr at, size_t size, bool is_write)
{
	for (const struct range *range = mappings; range != NULL; range = range->next) {
		if (holds(range, at, size)) {
			return (range->protection & (is_write ? PROT_WRITE : PROT_READ)) != 0;
		}
	}
	return false;
}

static CUresult make_handle(int fd, uint64_t size, const CUmemAllocationProp *properties,
			    CUmemGenericAllocationHandle *ret)
{
	struct handle *handle = calloc(1, sizeof *handle);

	if (handle == NULL) {
		abort();
	}
	*handle =
		(struct handle){.next = handles, .fd = fd, .size = size, .properties = *properties};
	handles = handle;
	fake_n_objects++;
	*ret = (CUmemGenericAllocationHandle)(uintptr_t)handle;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemGetAllocationGranularity(size_t *ret,
							const CUmemAllocationProp *properties,
							CUmemAllocationGranularity_flags option)
{
	FAKE_CALL(cuMemGetAllocationGranularity)
	(void)option;
	if (properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    !fake_is_device(properties->location.id)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	*ret = CARD_GRANULE;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle *ret, size_t size,
				      const CUmemAllocationProp *properties,
				      unsigned long long flags)
{
	int fd = -1;

	FAKE_CALL(cuMemCreate)
	if (flags != 0 || size == 0 || size % CARD_GRANULE != 0 ||
	    properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (!fake_is_device(properties->location.id)) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	(void)card_use(&fake_devices[properties->location.id].card, size, &fd);
	if (fd < 0) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	card_wait(&fake_devices[properties->location.id].card, "stop-create");
	return make_handle(fd, size, properties, ret);
}

FAKE_API CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle wanted)
{
	struct handle **link;
	struct handle *handle;

	FAKE_CALL(cuMemRelease)
	link = find_handle(wanted);
	handle = *link;
	if (handle == NULL) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	*link = handle->next;
	(void)close(handle->fd); /* a mapping keeps the memory */
	free(handle);
	fake_n_objects--;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemAddressReserve(CUdeviceptr *ret, size_t size, size_t alignment,
					      CUdeviceptr wanted, unsigned long long flags)
{
	char *room;
	size_t head;

	FAKE_CALL(cuMemAddressReserve)
	(void)wanted;
	if (flags != 0 || size == 0 || size % CARD_GRANULE != 0 ||
	    (alignment & (alignment - 1)) != 0 || alignment > CARD_GRANULE) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	room = mmap(NULL, size + CARD_GRANULE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	head = (size_t)(-(uintptr_t)room & (CARD_GRANULE - 1));
	if (head > 0) {
		(void)munmap(room, head);
	}
	(void)munmap(room + head + size, CARD_GRANULE - head);
	*ret = (CUdeviceptr)(uintptr_t)(room + head);
	(void)add_range(&reservations, *ret, size);
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemAddressFree(CUdeviceptr at, size_t size)
{
	struct range **link;

	FAKE_CALL(cuMemAddressFree)
	link = find_range(&reservations, at, size);
	if (*link == NULL || overlaps(mappings, at, size)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	(void)munmap(pointer_of(at), size);
	drop_range(link);
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemMap(CUdeviceptr at, size_t size, size_t offset,
				   CUmemGenericAllocationHandle wanted, unsigned long long flags)
{
	const struct handle *handle;
	const struct range *reservation;

	FAKE_CALL(cuMemMap)
	handle = *find_handle(wanted);
	reservation = reservations;
	while (reservation != NULL && !holds(reservation, at, size)) {
		reservation = reservation->next;
	}
	if (handle == NULL || reservation == NULL || offset != 0 || flags != 0 ||
	    overlaps(mappings, at, size)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (size != handle->size) {
		return CUDA_ERROR_NOT_SUPPORTED; /* as a real one says it (docs/gpu-notes.md) */
	}
	if (mmap(pointer_of(at), size, PROT_NONE, MAP_SHARED | MAP_FIXED, handle->fd, 0) ==
	    MAP_FAILED) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	add_range(&mappings, at, size)->ordinal = handle->properties.location.id;
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemUnmap(CUdeviceptr at, size_t size)
{
	struct range **link;

	FAKE_CALL(cuMemUnmap)
	link = find_range(&mappings, at, size);
	if (*link == NULL) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	(void)mmap(pointer_of(at), size, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	drop_range(link);
	return CUDA_SUCCESS;
}

static bool lies_in(const struct range *mapping, CUdeviceptr at, size_t size)
{
	const struct range whole = {.at = at, .size = size};

	return holds(&whole, mapping->at, mapping->size);
}

static bool reaches_all(const CUmemAccessDesc *access, CUdeviceptr at, size_t size)
{
	for (const struct range *mapping = mappings; mapping != NULL; mapping = mapping->next) {
		if (lies_in(mapping, at, size) &&
		    !fake_can_reach(access->location.id, mapping->ordinal)) {
			return false;
		}
	}
	return fake_is_device(access->location.id);
}

FAKE_API CUresult CUDAAPI cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc *access,
					 size_t n_access)
{
	int protection = PROT_NONE;
	size_t mapped = 0;

	FAKE_CALL(cuMemSetAccess)
	for (const struct range *mapping = mappings; mapping != NULL; mapping = mapping->next) {
		mapped += lies_in(mapping, at, size) ? mapping->size : 0;
	}
	if (mapped != size || n_access == 0) { /* whole mappings, and nothing between them */
		return CUDA_ERROR_INVALID_VALUE;
	}
	for (size_t i = 0; i < n_access; i++) {
		if (!reaches_all(&access[i], at, size)) {
			return CUDA_ERROR_INVALID_DEVICE;
		}
		if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
			protection = PROT_READ | PROT_WRITE;
		} else if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READ) {
			protection |= PROT_READ;
		}
	}
	if (mprotect(pointer_of(at), size, protection) != 0) {
		return CUDA_ERROR_OPERATING_SYSTEM;
	}
	for (struct range *mapping = mappings; mapping != NULL; mapping = mapping->next) {
		mapping->protection = lies_in(mapping, at, size) ? protection : mapping->protection;
	}
	return CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemExportToShareableHandle(void *ret,
						       CUmemGenericAllocationHandle wanted,
						       CUmemAllocationHandleType type,
						       unsigned long long flags)
{
	const struct handle *handle;
	int *fd = ret;

	FAKE_CALL(cuMemExportToShareableHandle)
	handle = *find_handle(wanted);
	if (handle == NULL || flags != 0 || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
	    handle->properties.requestedHandleTypes != type) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	*fd = dup(handle->fd); /* not close-on-exec: that is left to who asked */
	return *fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

FAKE_API CUresult CUDAAPI cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *ret,
							 void *from, CUmemAllocationHandleType type)
{
	const int fd = (int)(intptr_t)from;
	CUmemAllocationProp properties = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
	};
	uint32_t number = 0;
	uint64_t size = 0;
	int own_fd;

	FAKE_CALL(cuMemImportFromShareableHandle)
	if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (!card_of_fd(fd, &number, &size)) {
		return CUDA_ERROR_UNKNOWN; /* likewise; nothing is broken by it */
	}
	while (fake_is_device(properties.location.id) &&
	       fake_devices[properties.location.id].card.number != number) {
		properties.location.id++;
	}
	if (!fake_is_device(properties.location.id)) {
		return CUDA_ERROR_INVALID_DEVICE; /* CUDA_VISIBLE_DEVICES hides it */
	}
	own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (own_fd < 0) {
		return CUDA_ERROR_OPERATING_SYSTEM;
	}
	return make_handle(own_fd, size, &properties, ret);
}

FAKE_API CUresult CUDAAPI cuMemGetAllocationPropertiesFromHandle(
	CUmemAllocationProp *ret, CUmemGenericAllocationHandle wanted)
{
	const struct handle *handle;

	FAKE_CALL(cuMemGetAllocationPropertiesFromHandle)
	handle = *find_handle(wanted);
	if (handle == NULL) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	*ret = handle->properties;
	return CUDA_SUCCESS;
}
