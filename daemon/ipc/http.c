/* SPDX-License-Identifier: Apache-2.0 */
/* See http.h. */
#include "daemon/ipc/http.h"

#include <stdbool.h>
#include <string.h>

struct text {
	const char *bytes;
	size_t size;
};

static bool is_text(struct text text, const char *wanted)
{
	return text.size == strlen(wanted) && memcmp(text.bytes, wanted, text.size) == 0;
}

/* The bytes before the first 'end', which is taken as well; without one: all, and false. */
static bool take_until(struct text *rest, char end, struct text *ret)
{
	const char *at = memchr(rest->bytes, end, rest->size);
	size_t size = at == NULL ? rest->size : (size_t)(at - rest->bytes);

	*ret = (struct text){rest->bytes, size};
	rest->bytes += at == NULL ? size : size + 1;
	rest->size -= at == NULL ? size : size + 1;
	return at != NULL;
}

/* A line with its CR taken off; false when its end is not there yet. */
static bool take_line(struct text *rest, struct text *ret)
{
	bool is_whole = take_until(rest, '\n', ret);

	ret->size -= is_whole && ret->size > 0 && ret->bytes[ret->size - 1] == '\r' ? 1 : 0;
	return is_whole;
}

static bool is_token(struct text text)
{
	for (size_t i = 0; i < text.size; i++) {
		if (text.bytes[i] < 'A' || text.bytes[i] > 'Z') {
			return false;
		}
	}
	return text.size > 0;
}

static enum http_request judge_line(struct text line)
{
	struct text method;
	struct text path;
	struct text target;

	if (!take_until(&line, ' ', &method) || !take_until(&line, ' ', &path) ||
	    !is_token(method) || path.size == 0 || path.bytes[0] != '/' ||
	    (!is_text(line, "HTTP/1.1") && !is_text(line, "HTTP/1.0"))) {
		return HTTP_BAD;
	}
	if (!is_text(method, "GET") && !is_text(method, "HEAD")) {
		return HTTP_NOT_ALLOWED;
	}
	(void)take_until(&path, '?', &target); /* what a scraper adds there says nothing */
	if (!is_text(target, "/metrics")) {
		return HTTP_NOT_FOUND;
	}
	return is_text(method, "GET") ? HTTP_GET_METRICS : HTTP_HEAD_METRICS;
}

enum http_request http_judge(const char *bytes, size_t size)
{
	struct text rest = {bytes, size};
	struct text first;
	struct text line;

	if (!take_line(&rest, &first)) {
		return HTTP_MORE;
	}
	do {
		if (!take_line(&rest, &line)) {
			return HTTP_MORE;
		}
	} while (line.size > 0);
	return judge_line(first);
}
