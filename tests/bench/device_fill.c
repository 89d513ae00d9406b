/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How near fills and moves come to the link of a device, over two simulated devices in workers of
 * their own, whose links are as fast as is said:
 *
 *     device_fill WORKER [FOLDER [MIB [LINK-MIB/S [ROUNDS]]]]
 *
 * Makes a model of MIB in blocks of 32 MiB in FOLDER. Each line is a job of all its blocks: what
 * it took, and the link's time for the same bytes over that. "both" fills two devices at once;
 * a move is judged by the slower link. The disk alone stands beside the fill from it. The last line
 * shows how reading and transfer overlap: each round the file alone, the link alone, and both
 * together. A job of over 2 s has to wait for memory on some machines (machine_memory.h). Not a
 * test: nothing here can fail a build.
 */
#include "base/os/mailbox.h"
#include "base/require.h"
#include "tests/bench/machine_memory.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/device/device.h"
#include "daemon/device/remote.h"
#include "daemon/device/sim.h"
#include "daemon/load/image_set.h"
#include "daemon/load/loader.h"
#include "daemon/load/reader.h"
#include "daemon/load/thread.h"

#define MIB         (1ULL << 20)
#define BLOCK_BYTES (32 * MIB)
#define N_SIMS      2U
#define N_DEVICES   (N_SIMS + 1) /* the host is the first */
#define MAX_BLOCKS  256U
#define MAX_ROUNDS  16U
#define HEADER_SIZE (MAX_BLOCKS * 128U)

enum file_state { FILE_WARM, FILE_COLD };

struct bench {
	const char *worker;
	uint64_t link; /* bytes a second, of the first; the second's is three quarters of it */
	uint32_t n_blocks;
	uint32_t n_rounds;
	int fd;
	struct file *file;
	struct device *devices[N_DEVICES];
	pid_t pids[N_DEVICES];
	uint32_t n_peers; /* of each: the devices behind the host, or none */
	struct mailbox *box;
	struct loader *loader;
	struct tensor_map *map;
};

/* One generation: where the blocks lie, and its copies. */
struct spread {
	uint8_t places[MAX_BLOCKS];
	struct load_result *image;
	struct load_result *blocks[MAX_BLOCKS];
};

static double now(void)
{
	struct timespec time;

	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ---- the model ---- */

static void write_header(const struct bench *bench)
{
	char *header = malloc(HEADER_SIZE + 8);
	size_t used = 9;

	REQUIRE(header != NULL);
	memset(header, ' ', HEADER_SIZE + 8);
	for (uint32_t i = 0; i < 8; i++) {
		header[i] = (char)((uint64_t)HEADER_SIZE >> 8 * i);
	}
	header[8] = '{';
	for (uint32_t i = 0; i < bench->n_blocks; i++) {
		used += (size_t)snprintf(header + used, HEADER_SIZE + 8 - used,
					 "%s\"b.%u.w\":{\"dtype\":\"U8\",\"shape\":[%llu],"
					 "\"data_offsets\":[%llu,%llu]}",
					 i == 0 ? "" : ",", i, (unsigned long long)BLOCK_BYTES,
					 (unsigned long long)(i * BLOCK_BYTES),
					 (unsigned long long)((i + 1) * BLOCK_BYTES));
	}
	header[used++] = '}';
	if (used < HEADER_SIZE + 8) {
		header[used] = ' ';
	}
	REQUIRE(pwrite(bench->fd, header, HEADER_SIZE + 8, 0) == HEADER_SIZE + 8);
	free(header);
}

static void write_model(struct bench *bench, const char *folder)
{
	char path[512];
	uint8_t *bytes = malloc(BLOCK_BYTES);

	REQUIRE(bytes != NULL);
	(void)snprintf(path, sizeof path, "%s/device-fill.XXXXXX", folder);
	bench->fd = mkstemp(path);
	REQUIRE(bench->fd >= 0 && unlink(path) == 0);
	for (uint64_t i = 0; i < BLOCK_BYTES; i++) {
		bytes[i] = (uint8_t)(i * 2654435761U >> 13);
	}
	write_header(bench);
	for (uint32_t i = 0; i < bench->n_blocks; i++) {
		REQUIRE(pwrite(bench->fd, bytes, BLOCK_BYTES,
			       (off_t)(HEADER_SIZE + 8 + i * BLOCK_BYTES)) == (ssize_t)BLOCK_BYTES);
	}
	REQUIRE(fsync(bench->fd) == 0);
	free(bytes);
}

static int reopen(int fd, int flags)
{
	char path[64];

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* ---- devices ---- */

static int start_worker(const struct bench *bench, const char *name, pid_t *ret_pid)
{
	int ends[2];

	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	*ret_pid = fork();
	REQUIRE(*ret_pid >= 0);
	if (*ret_pid == 0) {
		const int end = fcntl(ends[1], F_DUPFD_CLOEXEC, 10);

		if (dup2(end, 3) == 3) {
			(void)execl(bench->worker, "distorchd-worker", name, (char *)NULL);
		}
		_exit(127);
	}
	(void)close(ends[1]);
	return ends[0];
}

static void open_devices(struct bench *bench, bool are_peers)
{
	struct sim_config sims[N_SIMS];
	const struct remote_options options = {.sims = sims,
					       .n_sims = N_SIMS,
					       .limit_ns = 60000000000U};

	bench->n_peers = are_peers ? N_SIMS : 0;
	for (uint32_t i = 0; i < N_SIMS; i++) {
		sims[i] = (struct sim_config){.memory_bytes = (bench->n_blocks + 1) * BLOCK_BYTES,
					      .granularity = 2 * MIB,
					      .bytes_per_s = i == 0 ? bench->link
								    : bench->link / 4 * 3,
					      .has_peers = are_peers};
	}
	for (uint32_t i = 0; i < N_SIMS; i++) {
		char name[16];
		int socket;

		(void)snprintf(name, sizeof name, "sim:%u", i);
		socket = start_worker(bench, name, &bench->pids[i + 1]);
		REQUIRE(device_open("remote", name, &bench->devices[i + 1], NULL) == 0);
		REQUIRE(remote_attach(bench->devices[i + 1], socket, &options, NULL, NULL, NULL) ==
			0);
	}
}

static void close_devices(struct bench *bench)
{
	for (uint32_t i = 1; i < N_DEVICES; i++) {
		bench->devices[i] = device_close(bench->devices[i]);
		REQUIRE(waitpid(bench->pids[i], NULL, 0) == bench->pids[i]);
	}
}

/* ---- jobs ---- */

static struct load_result *next_final(const struct bench *bench)
{
	struct pollfd readable = {.fd = mailbox_fd(bench->box), .events = POLLIN};

	for (;;) {
		struct mail *mail = mailbox_take(bench->box);
		struct load_result *result = mail == NULL ? NULL : load_result_from_mail(mail);

		if (result == NULL) {
			(void)poll(&readable, 1, -1);
		} else if (result->type == LOAD_PROGRESS) {
			(void)load_result_free(result);
		} else {
			return result;
		}
	}
}

static void read_header(struct bench *bench)
{
	const struct header_request request = {.job = 1, .file = bench->file};
	struct load_result *result;

	loader_read_header(bench->loader, &request);
	result = next_final(bench);
	REQUIRE(result->err.code == 0 && result->map->n_blocks == bench->n_blocks);
	bench->map = result->map;
	result->map = NULL;
	(void)load_result_free(result);
}

static struct image_set *begin(const struct bench *bench, const struct spread *spread,
			       const struct spread *earlier)
{
	struct extent **blocks = calloc(bench->n_blocks, sizeof(struct extent *));
	struct earlier_image image = {0};
	struct image_set_request request = {
		.map = bench->map,
		.model_id = (const uint8_t *)"0123456789abcdef",
		.has_sums = true,
		.name = "device_fill",
		.places = spread->places,
		.earlier_images = &image,
		.earlier_places = earlier == NULL ? NULL : earlier->places,
		.earlier_blocks = blocks,
	};
	struct image_set *set;

	REQUIRE(blocks != NULL);
	for (uint32_t i = 0; earlier != NULL && i < bench->n_blocks; i++) {
		blocks[i] = earlier->blocks[i] == NULL ? NULL : earlier->blocks[i]->extent;
	}
	if (earlier != NULL && earlier->image != NULL) {
		image.extent = earlier->image->extent;
	}
	set = image_set_new(&request);
	REQUIRE(set != NULL);
	free(blocks);
	return set;
}

/* All of it at once, its memory at hand. Returns the seconds that took. */
static double fill(const struct bench *bench, struct spread *spread, const struct spread *earlier)
{
	struct image_set *set = begin(bench, spread, earlier);
	struct fill_request request = {.job = 1, .file = bench->file, .images = set};
	uint32_t n_fills = 0;
	double begun;
	double seconds;

	(void)seconds_to_take(bench->n_blocks * BLOCK_BYTES);
	begun = now();
	for (uint32_t i = 0; i < bench->n_blocks; i++) {
		if (spread->places[i] != 0) {
			request.segment = request.index = i;
			request.into = FILL_DEVICE;
			request.device = bench->devices[spread->places[i]];
			request.peers = (const struct device *const *)&bench->devices[1];
			request.n_peers = bench->n_peers;
			loader_fill(bench->loader, &request);
			n_fills++;
		}
	}
	if (n_fills == 0) {
		loader_fill(bench->loader, &request);
		spread->image = next_final(bench);
		REQUIRE(spread->image->err.code == 0);
	}
	for (uint32_t i = 0; i < n_fills; i++) {
		struct load_result *result = next_final(bench);

		REQUIRE(result->err.code == 0);
		spread->blocks[result->segment] = result;
	}
	seconds = now() - begun;
	(void)image_set_free(set);
	return seconds;
}

static void let_go(const struct bench *bench, struct spread *spread)
{
	(void)load_result_free(spread->image);
	spread->image = NULL;
	for (uint32_t i = 0; i < bench->n_blocks; i++) {
		(void)load_result_free(spread->blocks[i]);
		spread->blocks[i] = NULL;
	}
}

static void place(const struct bench *bench, struct spread *spread, uint8_t first, uint8_t second)
{
	memset(spread, 0, sizeof *spread);
	for (uint32_t i = 0; i < bench->n_blocks; i++) {
		spread->places[i] = i % 2 == 0 ? first : second;
	}
}

static void prepare_file(const struct bench *bench, enum file_state state)
{
	const off_t bytes = (off_t)(HEADER_SIZE + 8 + bench->n_blocks * BLOCK_BYTES);
	uint8_t *memory;

	if (state == FILE_COLD) {
		(void)posix_fadvise(bench->fd, 0, 0, POSIX_FADV_DONTNEED);
		return;
	}
	memory = malloc(MIB);
	REQUIRE(memory != NULL);
	for (off_t at = 0; at < bytes; at += (off_t)MIB) {
		REQUIRE(pread(bench->fd, memory, MIB, at) >= 0);
	}
	free(memory);
}

/* ---- measuring ---- */

static int compare_doubles(const void *a, const void *b)
{
	const double first = *(const double *)a;
	const double second = *(const double *)b;

	return (first > second) - (first < second);
}

/* The rounds' median, beside what the link alone would take for so many bytes. */
static void print_line(const struct bench *bench, const char *what, double *seconds, uint64_t bytes,
		       uint64_t link)
{
	const double ideal = (double)bytes / (double)link;

	qsort(seconds, bench->n_rounds, sizeof *seconds, compare_doubles);
	(void)printf("%-44s %7.3f s  %7.0f MiB/s  %5.3f of the link (%.3f to %.3f)\n", what,
		     seconds[bench->n_rounds / 2],
		     (double)bytes / (double)MIB / seconds[bench->n_rounds / 2],
		     ideal / seconds[bench->n_rounds / 2], ideal / seconds[bench->n_rounds - 1],
		     ideal / seconds[0]);
}

/* The file alone: as it is read on its way to a device, and to nowhere. */
static double read_alone(const struct bench *bench)
{
	struct thread_group group;
	struct read_progress progress = {0};
	const struct reader reader = {.file = bench->file,
				      .bytes = HEADER_SIZE + 8 + bench->n_blocks * BLOCK_BYTES,
				      .n_threads = 4,
				      .direct_io = true,
				      .group = &group,
				      .progress = &progress};
	double begun;
	double seconds;

	thread_group_init(&group);
	prepare_file(bench, FILE_COLD);
	begun = now();
	REQUIRE(reader_run(&reader, NULL) == 0);
	seconds = now() - begun;
	REQUIRE(thread_group_wait(&group, UINT64_MAX));
	thread_group_fini(&group);
	return seconds;
}

static void measure_file(struct bench *bench, enum file_state state, const char *what)
{
	double seconds[MAX_ROUNDS];
	double alone[MAX_ROUNDS];
	struct spread spread;

	for (uint32_t i = 0; i < bench->n_rounds; i++) {
		alone[i] = state == FILE_COLD ? read_alone(bench) : 0;
		place(bench, &spread, 1, 1);
		prepare_file(bench, state);
		seconds[i] = fill(bench, &spread, NULL);
		let_go(bench, &spread);
	}
	print_line(bench, what, seconds, bench->n_blocks * BLOCK_BYTES, bench->link);
	if (state == FILE_COLD) {
		print_line(bench, "  the disk alone, to nowhere", alone,
			   bench->n_blocks * BLOCK_BYTES, bench->link);
	}
}

/* From one spread to another, without a look at the file. */
static void measure_move(struct bench *bench, const struct spread *from, uint8_t first,
			 uint8_t second, uint64_t link, const char *what)
{
	const uint64_t all = bench->n_blocks * BLOCK_BYTES;
	double seconds[MAX_ROUNDS];
	struct spread spread;

	for (uint32_t i = 0; i < bench->n_rounds; i++) {
		place(bench, &spread, first, second);
		seconds[i] = fill(bench, &spread, from);
		let_go(bench, &spread);
	}
	/* Half on each: the second, with the slower link, decides. */
	print_line(bench, what, seconds, first == second ? all : all / 2, link);
}

static void measure_moves(struct bench *bench, const char *way)
{
	const uint64_t slower = bench->link / 4 * 3;
	char what[64];
	struct spread spread;

	place(bench, &spread, 1, 1);
	(void)fill(bench, &spread, NULL);
	(void)snprintf(what, sizeof what, "move sim:0 -> sim:1, %s", way);
	measure_move(bench, &spread, 2, 2, slower, what);
	let_go(bench, &spread);
}

static void measure_images(struct bench *bench)
{
	struct spread spread;

	place(bench, &spread, 0, 0);
	(void)fill(bench, &spread, NULL);
	measure_move(bench, &spread, 1, 1, bench->link, "fill from an image");
	measure_move(bench, &spread, 1, 2, bench->link / 4 * 3,
		     "fill of both at once, the slower one");
	let_go(bench, &spread);
}

/* The file alone before and after, as a disk's pace changes: the mean of both. */
struct overlap {
	double file_s;
	double link_s;
	double both_s;
};

/* With a link half as fast as the file: one after the other would take half as long again. */
static struct overlap overlap_once(struct bench *bench)
{
	const uint64_t bytes = bench->n_blocks * BLOCK_BYTES;
	struct overlap found = {.file_s = read_alone(bench)};
	struct spread image;
	struct spread spread;

	close_devices(bench);
	bench->link = (uint64_t)((double)bytes / found.file_s / 2);
	open_devices(bench, false);
	place(bench, &image, 0, 0);
	(void)fill(bench, &image, NULL);
	place(bench, &spread, 1, 1);
	found.link_s = fill(bench, &spread, &image);
	let_go(bench, &spread);
	let_go(bench, &image);
	place(bench, &spread, 1, 1);
	prepare_file(bench, FILE_COLD);
	found.both_s = fill(bench, &spread, NULL);
	let_go(bench, &spread);
	found.file_s = (found.file_s + read_alone(bench)) / 2;
	return found;
}

static void print_ratios(const struct bench *bench, const char *what, double *ratios)
{
	qsort(ratios, bench->n_rounds, sizeof *ratios, compare_doubles);
	(void)printf("%.2f of %s (%.2f to %.2f)", ratios[bench->n_rounds / 2], what, ratios[0],
		     ratios[bench->n_rounds - 1]);
}

static void measure_overlap(struct bench *bench)
{
	const uint64_t link = bench->link;
	double of_sum[MAX_ROUNDS];
	double of_longer[MAX_ROUNDS];
	struct overlap last = {0};

	for (uint32_t i = 0; i < bench->n_rounds; i++) {
		last = overlap_once(bench);
		of_sum[i] = last.both_s / (last.file_s + last.link_s);
		of_longer[i] =
			last.both_s / (last.file_s > last.link_s ? last.file_s : last.link_s);
	}
	bench->link = link;
	(void)printf("overlap: cold file alone %.3f s, link alone %.3f s, fill %.3f s in the last "
		     "round; the fill takes ",
		     last.file_s, last.link_s, last.both_s);
	print_ratios(bench, "one after the other", of_sum);
	(void)printf(", ");
	print_ratios(bench, "the longer", of_longer);
	(void)printf("\n");
}

static void run(struct bench *bench)
{
	const struct loader_options options = {.direct_io = true,
					       .hugepages = true,
					       .stall_ns = 60000000000U,
					       .progress_ns = 100000000U};

	REQUIRE(device_open("host", "cpu", &bench->devices[0], NULL) == 0);
	bench->box = mailbox_new(NULL);
	bench->loader = loader_new(&options, bench->devices[0], bench->box, NULL);
	REQUIRE(bench->box != NULL && bench->loader != NULL);
	REQUIRE(file_new(reopen(bench->fd, O_RDONLY), reopen(bench->fd, O_RDONLY | O_DIRECT),
			 &bench->file, NULL) == 0);
	read_header(bench);
	open_devices(bench, false);
	measure_images(bench);
	measure_file(bench, FILE_WARM, "fill from the page cache");
	measure_file(bench, FILE_COLD, "fill from the disk");
	measure_moves(bench, "through the host");
	close_devices(bench);
	open_devices(bench, true);
	measure_moves(bench, "as peers");
	measure_overlap(bench);
	close_devices(bench);
	(void)tensor_map_free(bench->map);
	(void)file_unref(bench->file);
	REQUIRE(loader_free(bench->loader) == NULL);
	(void)mailbox_free(bench->box);
	(void)device_close(bench->devices[0]);
}

static uint64_t number_at(int argc, char **argv, int index, uint64_t otherwise)
{
	return argc > index ? strtoull(argv[index], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	struct bench bench = {.worker = argc > 1 ? argv[1] : "distorchd-worker"};
	struct utsname machine;

	bench.n_blocks = (uint32_t)(number_at(argc, argv, 3, 512) * MIB / BLOCK_BYTES);
	bench.link = number_at(argc, argv, 4, 1024) * MIB;
	bench.n_rounds = (uint32_t)number_at(argc, argv, 5, 3);
	REQUIRE(bench.n_blocks > 0 && bench.n_blocks <= MAX_BLOCKS && bench.link > 0);
	REQUIRE(bench.n_rounds > 0 && bench.n_rounds <= MAX_ROUNDS);
	REQUIRE(uname(&machine) == 0);
	device_register(&remote_device_ops);
	(void)printf("%llu MiB in blocks of %llu MiB, links of %llu and %llu MiB/s, %ld CPUs, "
		     "Linux %s\n",
		     (unsigned long long)(bench.n_blocks * BLOCK_BYTES / MIB),
		     (unsigned long long)(BLOCK_BYTES / MIB),
		     (unsigned long long)(bench.link / MIB),
		     (unsigned long long)(bench.link / 4 * 3 / MIB), sysconf(_SC_NPROCESSORS_ONLN),
		     machine.release);
	print_new_memory(bench.n_blocks * BLOCK_BYTES);
	write_model(&bench, argc > 2 ? argv[2] : "/tmp");
	run(&bench);
	(void)close(bench.fd);
	return 0;
}
