/* SPDX-License-Identifier: Apache-2.0 */
/* Which request the bytes are, at every place where they may be cut. */
#include "tests/support/unit.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/ipc/http.h"

/* In memory of its own size, so that a sanitizer sees a read past the end. */
static enum http_request judge(const char *text, size_t size)
{
	char *copy = malloc(size == 0 ? 1 : size);
	enum http_request request;

	assert_non_null(copy);
	memcpy(copy, text, size);
	request = http_judge(copy, size);
	free(copy);
	return request;
}

static void expect(const char *text, enum http_request wanted)
{
	assert_int_equal(judge(text, strlen(text)), wanted);
}

static void what_scrapers_send_is_understood(void **state)
{
	(void)state;
	expect("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", HTTP_GET_METRICS);
	expect("GET /metrics HTTP/1.0\n\n", HTTP_GET_METRICS);
	expect("GET /metrics?format=text&x=/y HTTP/1.1\r\n\r\n", HTTP_GET_METRICS);
	expect("HEAD /metrics HTTP/1.1\r\nA:\r\n\r\n", HTTP_HEAD_METRICS);
	expect("GET /metrics HTTP/1.1\r\n\r\nbytes of another request", HTTP_GET_METRICS);
}

static void other_requests_are_told_apart(void **state)
{
	static const char *const bad[] = {
		"\r\n\r\n",
		" \r\n\r\n",
		"GET\r\n\r\n",
		"GET /metrics\r\n\r\n",
		"GET  /metrics HTTP/1.1\r\n\r\n",
		"GET /metrics HTTP/1.1 \r\n\r\n",
		"GET /metrics HTTP/2\r\n\r\n",
		"GET /metrics HTTP/11\r\n\r\n",
		"get /metrics HTTP/1.1\r\n\r\n",
		"G\x01T /metrics HTTP/1.1\r\n\r\n",
		"GET metrics HTTP/1.1\r\n\r\n",
		"GET http://localhost/metrics HTTP/1.1\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x02\n\n", /* TLS */
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		expect(bad[i], HTTP_BAD);
	}
	expect("GET / HTTP/1.1\r\n\r\n", HTTP_NOT_FOUND);
	expect("GET /metrics/ HTTP/1.1\r\n\r\n", HTTP_NOT_FOUND);
	expect("GET /metric HTTP/1.1\r\n\r\n", HTTP_NOT_FOUND);
	expect("HEAD /?/metrics HTTP/1.1\r\n\r\n", HTTP_NOT_FOUND);
	expect("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nx=1", HTTP_NOT_ALLOWED);
	expect("DELETE / HTTP/1.1\r\n\r\n", HTTP_NOT_ALLOWED);
}

static void a_request_is_judged_when_it_is_whole_and_not_before(void **state)
{
	static const char text[] = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
	static const char zeros[64];

	(void)state;
	for (size_t size = 0; size < sizeof text - 1; size++) {
		assert_int_equal(judge(text, size), HTTP_MORE);
	}
	assert_int_equal(judge(text, sizeof text - 1), HTTP_GET_METRICS);
	assert_int_equal(judge(zeros, sizeof zeros), HTTP_MORE);
	assert_int_equal(judge("\0\n\n", 3), HTTP_BAD);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_scrapers_send_is_understood),
		cmocka_unit_test(other_requests_are_told_apart),
		cmocka_unit_test(a_request_is_judged_when_it_is_whole_and_not_before),
	};

	return cmocka_run_group_tests_name("daemon/ipc/http", tests, NULL, NULL);
}
