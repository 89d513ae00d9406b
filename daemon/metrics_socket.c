/* SPDX-License-Identifier: Apache-2.0 */
/* Where the metrics can be fetched by HTTP (metrics.listen). See metrics.h. */
#include "base/err.h"
#include "base/os/log.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/holes.h"
#include "daemon/ipc/listen.h"
#include "daemon/ipc/scrape.h"
#include "daemon/metrics.h"
#include "daemon/testing.h"

#define DEADLINE_MS 5000

static bool write_text(void *context, char *ret_text, size_t size)
{
	holes_look(context);
	return metrics_write(context, ret_text, size);
}

static socklen_t fill_address(const struct config_listen *listen, struct sockaddr_storage *ret)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;

	memset(ret, 0, sizeof *ret);
	if (listen->kind == CONFIG_LISTEN_TCP4) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(listen->port);
		memcpy(&v4->sin_addr, listen->address, sizeof v4->sin_addr);
		return sizeof *v4;
	}
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(listen->port);
	memcpy(&v6->sin6_addr, listen->address, sizeof v6->sin6_addr);
	return sizeof *v6;
}

/* The path beside the daemon's own socket, which is no longer than LISTEN_MAX_PATH. */
static const char *path_beside(const char *socket_path, char buffer[LISTEN_MAX_PATH + 16])
{
	const char *slash = strrchr(socket_path, '/');
	size_t size = slash == NULL ? 0 : (size_t)(slash + 1 - socket_path);

	(void)snprintf(buffer, LISTEN_MAX_PATH + 16, "%.*smetrics.sock",
		       (int)(size < LISTEN_MAX_PATH ? size : LISTEN_MAX_PATH), socket_path);
	return buffer;
}

struct scraper *metrics_serve(struct daemon *daemon, const struct daemon_options *options,
			      uint32_t mode, uint32_t gid)
{
	const char *text = daemon->config->metrics_listen;
	struct config_listen listen;
	struct sockaddr_storage address;
	struct scrape_options scrape = {
		.mode = mode,
		.gid = gid,
		.deadline_ms = testing_ms("DISTORCHD_TEST_SCRAPE_MS", DEADLINE_MS),
		.context = daemon,
		.write = write_text,
		.text_size = WIRE_METRICS_RESPONSE_TEXT_MAX,
	};
	struct scraper *scraper = NULL;
	struct err err = {0};
	char path[LISTEN_MAX_PATH + 16];

	(void)config_parse_listen(text, &listen, &err); /* was good when it was read */
	if (listen.kind == CONFIG_LISTEN_OFF ||
	    (listen.kind == CONFIG_LISTEN_AUTO && options->is_user)) {
		return NULL;
	}
	if (listen.kind == CONFIG_LISTEN_AUTO) {
		scrape.path = text = path_beside(options->socket_path, path);
	} else if (listen.kind == CONFIG_LISTEN_PATH) {
		scrape.path = text;
	} else {
		scrape.address_size = fill_address(&listen, &address);
		scrape.address = (const struct sockaddr *)&address;
	}
	/* Models are worth more than their numbers: the daemon serves without. */
	if (scraper_new(&daemon->loop, &scrape, &scraper, &err) < 0) {
		log_error("metrics cannot be fetched at %s: %s", text, err.text);
		return NULL;
	}
	log_info("metrics can be fetched at %s", text);
	return scraper;
}
