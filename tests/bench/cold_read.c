/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast a model that is not in the page cache becomes a sealed image, against a raw
 * O_DIRECT read of the same bytes into memory that is used over and over, in the same run:
 *
 *     cold_read [FOLDER [MIB [ROUNDS]]]
 *
 * Makes four files in FOLDER and takes them in turn. A round is raw, fill, fill, raw (the two
 * raw ones give the null). "fresh" is what anybody pays who needs new memory, unhashed: the
 * limit of a machine whose disk is about as fast as its memory. Every line says what it was
 * measured on. Not a test: nothing here can fail a build.
 */
#include "base/os/mailbox.h"
#include "base/os/sys.h"
#include "base/require.h"
#include "tests/bench/machine_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/load/image_set.h"
#include "daemon/load/loader.h"

#define MIB         (1ULL << 20)
#define N_FILES     4U
#define MAX_ROUNDS  64U
#define RAW_THREADS 4U
#define RAW_WINDOW  (8 * MIB)

enum way { WAY_RAW, WAY_FRESH, WAY_FILL, WAY_SMALL_PAGES, WAY_BUFFERED, WAY_WARM, WAY_N_VALUES };

static const char *const way_names[WAY_N_VALUES] = {"raw O_DIRECT, reused memory",
						    "raw O_DIRECT, fresh 2 MiB pages",
						    "fill, direct",
						    "fill, direct, 4 KiB pages",
						    "fill, buffered",
						    "fill, from the page cache"};

struct sample {
	double seconds;
	double cpu_seconds;
	uint64_t page_bytes;
	uint64_t huge_bytes;
};

struct bench {
	const char *folder;
	uint64_t bytes; /* of one file */
	uint32_t n_rounds;
	int fds[N_FILES];
	uint32_t next_file;
	uint8_t *memory; /* resident, for raw reads */
	struct device *device;
	struct sample samples[WAY_N_VALUES][2 * MAX_ROUNDS];
	uint32_t n_samples[WAY_N_VALUES];
};

static double now(clockid_t clock)
{
	struct timespec time;

	REQUIRE(clock_gettime(clock, &time) == 0);
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ---- files ---- */

static int reopen(int fd, int flags)
{
	char path[64];

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

static void write_all(int fd, const void *bytes, size_t size, uint64_t offset)
{
	REQUIRE(pwrite(fd, bytes, size, (off_t)offset) == (ssize_t)size);
}

/* A safetensors file of one tensor with bytes that do not compress. */
static int make_file(const char *folder, uint64_t bytes)
{
	static uint64_t block[MIB / 8];
	char path[4096];
	char header[129];
	const uint8_t prefix[8] = {128};
	const unsigned long long n_data = bytes - 136;
	uint64_t random = 88172645463325252ULL + bytes;
	int fd;

	(void)snprintf(path, sizeof path, "%s/cold_read.XXXXXX", folder);
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0) {
		perror(path);
		exit(1);
	}
	REQUIRE(unlink(path) == 0);
	for (uint64_t done = 0; done < bytes; done += MIB) {
		for (size_t i = 0; i < MIB / 8; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			block[i] = random;
		}
		write_all(fd, block, MIB, done);
	}
	memset(header, ' ', sizeof header);
	header[snprintf(header, sizeof header,
			"{\"a\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[0,%llu]}}",
			n_data, n_data)] = ' ';
	write_all(fd, header, 128, 8);
	write_all(fd, prefix, 8, 0);
	REQUIRE(fsync(fd) == 0);
	return fd;
}

static void forget_cached_pages(int fd)
{
	REQUIRE(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
}

/* ---- the raw read ---- */

struct raw {
	int fd;
	uint64_t bytes;
	uint8_t *memory;
	uint64_t next; /* atomic */
	bool is_fresh; /* the memory's pages have to be taken first */
};

static void *read_raw_windows(void *argument)
{
	struct raw *raw = argument;

	for (;;) {
		uint64_t at = __atomic_fetch_add(&raw->next, RAW_WINDOW, __ATOMIC_RELAXED);
		uint64_t end = at + RAW_WINDOW < raw->bytes ? at + RAW_WINDOW : raw->bytes;

		if (at >= raw->bytes) {
			return NULL;
		}
		if (raw->is_fresh) {
			(void)madvise(raw->memory + at, end - at, MADV_POPULATE_WRITE);
		}
		while (at < end) {
			ssize_t n_read = pread(raw->fd, raw->memory + at, end - at, (off_t)at);

			REQUIRE(n_read > 0);
			at += (uint64_t)n_read;
		}
	}
}

static void read_raw(const struct bench *bench, int fd, uint8_t *memory)
{
	struct raw raw = {.bytes = bench->bytes,
			  .memory = memory,
			  .is_fresh = memory != bench->memory};
	pthread_t threads[RAW_THREADS];

	raw.fd = reopen(fd, O_RDONLY | O_DIRECT);
	REQUIRE(raw.fd >= 0);
	for (uint32_t i = 0; i < RAW_THREADS; i++) {
		REQUIRE(pthread_create(&threads[i], NULL, read_raw_windows, &raw) == 0);
	}
	for (uint32_t i = 0; i < RAW_THREADS; i++) {
		REQUIRE(pthread_join(threads[i], NULL) == 0);
	}
	(void)close(raw.fd);
}

/* ---- the fill ---- */

static struct load_result *wait_for(struct mailbox *box, enum load_type type)
{
	struct pollfd readable = {.fd = mailbox_fd(box), .events = POLLIN};

	for (;;) {
		struct mail *mail = mailbox_take(box);
		struct load_result *result;

		if (mail == NULL) {
			REQUIRE(poll(&readable, 1, -1) == 1);
			continue;
		}
		result = load_result_from_mail(mail);
		if (result->err.code != 0) {
			(void)fprintf(stderr, "%s\n", result->err.text);
			exit(1);
		}
		if (result->type == type) {
			return result;
		}
		(void)load_result_free(result);
	}
}

static void fill(const struct bench *bench, int fd, enum way way, struct sample *ret)
{
	const struct loader_options options = {
		.direct_io = way != WAY_BUFFERED,
		.hugepages = way != WAY_SMALL_PAGES,
		.stall_ns = 30000000000U,
		.progress_ns = 100000000U,
	};
	struct mailbox *box = mailbox_new(NULL);
	struct loader *loader = loader_new(&options, bench->device, box, NULL);
	struct load_result *header;
	struct load_result *filled;
	struct image_set_request set = {.model_id = (const uint8_t *)"0123456789abcdef",
					.has_sums = true,
					.name = "cold_read"};
	struct fill_request request = {0};
	struct file *file = NULL;
	double begun;
	double cpu;

	REQUIRE(loader != NULL);
	REQUIRE(file_new(reopen(fd, O_RDONLY), reopen(fd, O_RDONLY | O_DIRECT), &file, NULL) == 0);
	begun = now(CLOCK_MONOTONIC);
	cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	loader_read_header(loader, &(struct header_request){.job = 1, .file = file});
	header = wait_for(box, LOAD_HEADER);
	set.map = header->map;
	request.file = file;
	request.images = image_set_new(&set);
	REQUIRE(request.images != NULL);
	request.job = 1;
	loader_fill(loader, &request);
	filled = wait_for(box, LOAD_FILLED);
	*ret = (struct sample){.seconds = now(CLOCK_MONOTONIC) - begun,
			       .cpu_seconds = now(CLOCK_PROCESS_CPUTIME_ID) - cpu,
			       .page_bytes = filled->page_bytes,
			       .huge_bytes = filled->huge_bytes};
	(void)load_result_free(filled);
	(void)image_set_free(request.images);
	(void)load_result_free(header);
	(void)file_unref(file);
	REQUIRE(loader_free(loader) == NULL);
	(void)mailbox_free(box);
}

/* ---- measuring ---- */

/* Room for huge pages whatever the address. */
static uint8_t *map_memory(uint64_t bytes)
{
	uint8_t *memory = mmap(NULL, bytes + 2 * MIB, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(memory != MAP_FAILED);
	(void)madvise(memory, bytes + 2 * MIB, MADV_HUGEPAGE);
	return memory;
}

static void warm(const struct bench *bench, int fd)
{
	for (uint64_t at = 0; at < bench->bytes; at += MIB) {
		static uint8_t buffer[MIB];

		REQUIRE(pread(fd, buffer, MIB, (off_t)at) == (ssize_t)MIB);
	}
}

static void measure(struct bench *bench, enum way way, bool is_counted)
{
	const int fd = bench->fds[bench->next_file++ % N_FILES];
	struct sample sample = {.page_bytes = 2 * MIB};

	forget_cached_pages(fd);
	if (way == WAY_WARM) {
		warm(bench, fd);
	}
	if (way != WAY_RAW) {
		(void)seconds_to_take(bench->bytes);
	}
	if (way == WAY_RAW || way == WAY_FRESH) {
		uint8_t *memory = way == WAY_RAW ? bench->memory : map_memory(bench->bytes);
		const double begun = now(CLOCK_MONOTONIC);
		const double cpu = now(CLOCK_PROCESS_CPUTIME_ID);

		read_raw(bench, fd, memory);
		sample.seconds = now(CLOCK_MONOTONIC) - begun;
		sample.cpu_seconds = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
		if (memory != bench->memory) {
			(void)munmap(memory, bench->bytes + 2 * MIB);
		}
	} else {
		fill(bench, fd, way, &sample);
	}
	if (is_counted) {
		bench->samples[way][bench->n_samples[way]++] = sample;
	}
}

static int compare_doubles(const void *a, const void *b)
{
	const double *x = a;
	const double *y = b;

	return (*x > *y) - (*x < *y);
}

/* Quartiles of 'n' values. */
static void quartiles(double *values, uint32_t n, double ret[3])
{
	qsort(values, n, sizeof *values, compare_doubles);
	ret[0] = values[n / 4];
	ret[1] = values[n / 2];
	ret[2] = values[(n * 3) / 4];
}

static double median_rate(const struct bench *bench, enum way way)
{
	double rates[2 * MAX_ROUNDS];
	double found[3];

	for (uint32_t i = 0; i < bench->n_samples[way]; i++) {
		rates[i] = (double)bench->bytes / bench->samples[way][i].seconds / 1e9;
	}
	quartiles(rates, bench->n_samples[way], found);
	return found[1];
}

static void print_way(const struct bench *bench, enum way way)
{
	double cpu[2 * MAX_ROUNDS];
	double ratios[2 * MAX_ROUNDS];
	double found[3];
	double cpu_found[3];
	const uint32_t n = bench->n_samples[way];
	const struct sample *last = &bench->samples[way][n - 1];

	for (uint32_t i = 0; i < n; i++) {
		/* Each against the raw read nearest to it in time. */
		const uint32_t raw = i * bench->n_samples[WAY_RAW] / n;

		ratios[i] = bench->samples[WAY_RAW][raw].seconds / bench->samples[way][i].seconds;
		cpu[i] = bench->samples[way][i].cpu_seconds / ((double)bench->bytes / 1e9);
	}
	quartiles(ratios, n, found);
	quartiles(cpu, n, cpu_found);
	(void)printf("%-31s %6.2f GB/s  of raw %.3f [%.3f %.3f]  %.3f CPU-s/GB  pages %llu KiB"
		     " (%llu of %llu MiB in 2 MiB)\n",
		     way_names[way], median_rate(bench, way), found[1], found[0], found[2],
		     cpu_found[1], (unsigned long long)last->page_bytes >> 10,
		     (unsigned long long)last->huge_bytes >> 20,
		     (unsigned long long)bench->bytes >> 20);
}

/* Raw against raw: what a ratio is worth here. */
static bool print_null(const struct bench *bench)
{
	double ratios[MAX_ROUNDS];
	double found[3];

	for (uint32_t i = 0; i < bench->n_rounds; i++) {
		ratios[i] = bench->samples[WAY_RAW][2 * i].seconds /
			    bench->samples[WAY_RAW][2 * i + 1].seconds;
	}
	quartiles(ratios, bench->n_rounds, found);
	(void)printf("%-31s                of raw %.3f [%.3f %.3f]\n", "raw against raw (null)",
		     found[1], found[0], found[2]);
	return found[0] > 0.9 && found[2] < 1.1;
}

static void print_machine(const struct bench *bench)
{
	struct utsname name;
	struct statfs status;
	char shmem[128] = "?";
	FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");

	REQUIRE(uname(&name) == 0 && fstatfs(bench->fds[0], &status) == 0);
	if (file != NULL) {
		if (fgets(shmem, sizeof shmem, file) != NULL) {
			shmem[strcspn(shmem, "\n")] = '\0';
		}
		(void)fclose(file);
	}
	(void)printf("%s %s, %ld CPUs, filesystem 0x%lx in %s, shmem_enabled %s\n"
		     "%u files of %llu MiB, %u rounds, %u threads of 8 MiB windows\n",
		     name.sysname, name.release, sysconf(_SC_NPROCESSORS_ONLN),
		     (unsigned long)status.f_type, bench->folder, shmem, N_FILES,
		     (unsigned long long)bench->bytes >> 20, bench->n_rounds, RAW_THREADS);
}

static void prepare(struct bench *bench)
{
	struct err err = {0};

	for (uint32_t i = 0; i < N_FILES; i++) {
		bench->fds[i] = make_file(bench->folder, bench->bytes);
	}
	REQUIRE(device_open("host", "cpu", &bench->device, &err) == 0);
	bench->memory = map_memory(bench->bytes);
	memset(bench->memory, 1, bench->bytes);
	measure(bench, WAY_FILL, false);
	measure(bench, WAY_RAW, false);
}

int main(int argc, char **argv)
{
	static struct bench bench;
	bool is_steady;

	bench.folder = argc > 1 ? argv[1] : ".";
	bench.bytes = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1024) * MIB;
	bench.n_rounds = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 8;
	if (bench.bytes == 0 || bench.n_rounds == 0 || bench.n_rounds > MAX_ROUNDS) {
		(void)fprintf(stderr, "usage: cold_read [FOLDER [MIB [ROUNDS]]]\n");
		return 2;
	}
	prepare(&bench);
	print_machine(&bench);
	print_new_memory(bench.bytes);
	for (uint32_t i = 0; i < bench.n_rounds; i++) {
		measure(&bench, WAY_RAW, true);
		measure(&bench, WAY_FILL, true);
		measure(&bench, WAY_FILL, true);
		measure(&bench, WAY_RAW, true);
		measure(&bench, WAY_FRESH, true);
		measure(&bench, WAY_SMALL_PAGES, true);
		measure(&bench, WAY_BUFFERED, true);
		measure(&bench, WAY_WARM, true);
	}
	for (int way = 0; way < WAY_N_VALUES; way++) {
		print_way(&bench, (enum way)way);
	}
	is_steady = print_null(&bench);
	if (is_steady) {
		(void)printf("aim: fill, direct at least 0.85 of raw\n");
	} else {
		(void)printf("no verdict: the null is wider than 10 %%\n");
	}
	return 0;
}
