/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A configuration file of any bytes, read through a memfd as a file is. A refusal names the
 * file and a line; what is accepted lists values that can be sent, and has a text of which the
 * same is read. And the same bytes as such a text: refused, or it comes to rest at once.
 */
#include "base/err.h"
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/config_saved.h"
#include "proto/gen/wire_code.h"
#include "proto/wire_read.h"

static void write_file(int fd, const void *bytes, size_t size)
{
	REQUIRE(ftruncate(fd, 0) == 0);
	REQUIRE(pwrite(fd, bytes, size, 0) == (ssize_t)size);
}

static void check_items(const struct config *config)
{
	struct config_item item;
	uint32_t cursor = 0;

	while (config_next(config, &cursor, &item)) {
		REQUIRE(strchr(item.key, '.') != NULL && strlen(item.key) <= 64);
		REQUIRE(strlen(item.value) <= 4096 && strlen(item.source) <= 4200);
		REQUIRE(wire_utf8_is_valid((const uint8_t *)item.key, strlen(item.key)));
		REQUIRE(wire_utf8_is_valid((const uint8_t *)item.value, strlen(item.value)));
	}
	REQUIRE(cursor >= 29 && cursor <= 256);
	REQUIRE(config->limits_connections >= 1 && config->limits_connections <= 65536);
	REQUIRE(config->log_level >= LOG_LEVEL_ERROR && config->log_level <= LOG_LEVEL_DEBUG);
	REQUIRE(config->gpu_devices != NULL && config->warm_models != NULL);
}

/* Its text gives the same values, and their text is the same. */
static void check_text(const struct config *config)
{
	struct config *again = NULL;
	size_t size = 0;
	size_t size_again = 0;
	char *text = config_to_text(config, &size);
	char *text_again;

	REQUIRE(text != NULL && config_from_text(text, size, &again, NULL) == 0);
	check_items(again);
	text_again = config_to_text(again, &size_again);
	REQUIRE(text_again != NULL && size_again == size && memcmp(text, text_again, size) == 0);
	free(text);
	free(text_again);
	(void)config_free(again);
}

static void try_as_text(const uint8_t *bytes, size_t size)
{
	struct config *config = NULL;
	struct err err = {0};
	int code = config_from_text((const char *)bytes, size, &config, &err);

	if (code == 0) {
		check_items(config);
		check_text(config);
	} else {
		REQUIRE(code == -WIRE_BAD_FILE && err.text[0] != '\0' && config == NULL);
	}
	(void)config_free(config);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static int fd = -1;
	static char path[64];
	static const char *const environment[] = {NULL};
	struct config_request request = {.path = path, .environment = environment};
	struct config *config = NULL;
	struct err err = {0};
	int code;

	if (fd < 0) {
		fd = memfd_create("config", MFD_CLOEXEC);
		REQUIRE(fd >= 0);
		(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	try_as_text(bytes, size);
	write_file(fd, bytes, size);
	code = config_load(&request, &config, &err);
	if (code < 0) {
		REQUIRE(code == -err.code && config == NULL);
		REQUIRE(code == -WIRE_BAD_ARGUMENT || code == -WIRE_UNSUPPORTED);
		REQUIRE(strncmp(err.text, path, strlen(path)) == 0);
		REQUIRE(err.text[strlen(path)] == ':');
		REQUIRE(strtoul(&err.text[strlen(path) + 1], NULL, 10) >= 1);
		return 0;
	}
	check_items(config);
	check_text(config);
	(void)config_free(config);
	return 0;
}
