/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that the kernel counts. See card.h. */
#include "tests/fakecuda/card.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 512

static const char *folder_of_all(void)
{
	const char *folder = getenv("FAKECUDA_DIR");

	return folder == NULL || folder[0] != '/' ? NULL : folder;
}

static uint64_t parse_bytes(const char **at)
{
	char *end = NULL;
	uint64_t bytes = strtoull(*at, &end, 10);

	if (*end == 'G') {
		bytes <<= 30;
		end++;
	} else if (*end == 'M') {
		bytes <<= 20;
		end++;
	}
	*at = *end == ',' ? end + 1 : end;
	return bytes;
}

static void make_card(struct card *card, uint32_t number, uint32_t place, uint64_t bytes)
{
	*card = (struct card){.number = number, .bytes = bytes};
	(void)snprintf(card->uuid, sizeof card->uuid, "GPU-fa4ecada-0000-4000-8000-%012x", number);
	(void)snprintf(card->pci, sizeof card->pci, "0000:%02x:00.0", (place + 1) & 0xff);
}

uint32_t cards_read(struct card *cards)
{
	const char *sizes = getenv("FAKECUDA_CARDS");
	const char *order = getenv("FAKECUDA_ORDER");
	uint64_t bytes[CARDS_MAX];
	uint32_t n_cards = 0;

	if (folder_of_all() == NULL) {
		return 0;
	}
	sizes = sizes == NULL ? "256M" : sizes;
	while (*sizes != '\0' && n_cards < CARDS_MAX) {
		bytes[n_cards++] = parse_bytes(&sizes);
	}
	for (uint32_t place = 0; place < n_cards; place++) {
		uint32_t number = place;

		if (order != NULL && *order != '\0') {
			number = (uint32_t)parse_bytes(&order) % n_cards;
		}
		make_card(&cards[place], number, place, bytes[number]);
	}
	return n_cards;
}

static void path_of(const struct card *card, const char *file, char *ret_path)
{
	(void)snprintf(ret_path, PATH_SIZE, "%s/%u/%s", folder_of_all(), card->number, file);
}

uint32_t card_numbers_of(const struct card *card, const char *file, uint64_t *ret,
			 uint32_t max_numbers)
{
	char path[PATH_SIZE];
	unsigned long long number = 0;
	uint32_t n_numbers = 0;
	FILE *stream;

	path_of(card, file, path);
	stream = fopen(path, "re");
	if (stream == NULL) {
		return 0;
	}
	while (n_numbers < max_numbers && fscanf(stream, "%llu", &number) == 1) {
		ret[n_numbers++] = number;
	}
	(void)fclose(stream);
	return n_numbers;
}

uint64_t card_number_of(const struct card *card, const char *file)
{
	uint64_t number = 0;

	(void)card_numbers_of(card, file, &number, 1);
	return number;
}

void card_wait(const struct card *card, const char *file)
{
	while (card_number_of(card, file) != 0) {
		(void)usleep(1000);
	}
}

/* The bytes of one allocation; where nobody has it any more it goes, and they are 0. */
static uint64_t look_at(int folder, const char *name)
{
	int fd = openat(folder, name, O_RDWR | O_CLOEXEC);
	struct stat status;
	uint64_t bytes = 0;

	if (fd < 0) {
		return 0;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
		(void)unlinkat(folder, name, 0);
	} else if (fstat(fd, &status) == 0) {
		bytes = (uint64_t)status.st_size;
	}
	(void)close(fd);
	return bytes;
}

static uint64_t count_allocations(int folder)
{
	DIR *entries = fdopendir(dup(folder));
	const struct dirent *entry;
	uint64_t bytes = 0;

	if (entries == NULL) {
		return 0;
	}
	rewinddir(entries);
	while ((entry = readdir(entries)) != NULL) {
		if (strncmp(entry->d_name, "a-", 2) == 0) {
			bytes += look_at(folder, entry->d_name);
		}
	}
	(void)closedir(entries);
	return bytes;
}

static int make_allocation(int folder, uint64_t bytes)
{
	static unsigned serial;
	char name[64];
	int fd;

	(void)snprintf(name, sizeof name, "a-%d-%u", (int)getpid(), ++serial);
	fd = openat(folder, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) {
		return -1;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) != 0 || ftruncate(fd, (off_t)bytes) != 0) {
		(void)unlinkat(folder, name, 0);
		(void)close(fd);
		return -1;
	}
	return fd;
}

uint64_t card_context_bytes(void)
{
	const char *bytes = getenv("FAKECUDA_CONTEXT");

	return bytes == NULL ? 0 : parse_bytes(&bytes);
}

uint64_t card_use(const struct card *card, uint64_t needed, int *ret_fd)
{
	char path[PATH_SIZE];
	uint64_t used;
	int folder;
	int lock;

	if (needed > 0) {
		*ret_fd = -1;
	}
	path_of(card, "", path);
	(void)mkdir(folder_of_all(), 0700); /* they may be there */
	(void)mkdir(path, 0700);
	folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	path_of(card, "lock", path);
	lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (folder < 0 || lock < 0 || flock(lock, LOCK_EX) != 0) {
		abort(); /* the test's folder is gone */
	}
	used = count_allocations(folder) + card_number_of(card, "foreign");
	if (needed > 0 && used <= card->bytes && needed <= card->bytes - used) {
		*ret_fd = make_allocation(folder, needed);
		used += needed;
	}
	(void)close(lock);
	(void)close(folder);
	return used;
}

bool card_of_fd(int fd, uint32_t *ret_number, uint64_t *ret_bytes)
{
	char link[64];
	char path[PATH_SIZE];
	struct stat status;
	ssize_t length;
	const char *folder = folder_of_all();
	char name[PATH_SIZE];

	(void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	if (folder == NULL || length < 0 || fstat(fd, &status) != 0) {
		return false;
	}
	path[length] = '\0';
	if (strncmp(path, folder, strlen(folder)) != 0 ||
	    sscanf(path + strlen(folder), "/%u/%511s", ret_number, name) != 2 ||
	    strncmp(name, "a-", 2) != 0) {
		return false;
	}
	*ret_bytes = (uint64_t)status.st_size;
	return true;
}
