/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head of an HTTP request. Oracle: nothing is read past the end (the input is copied to memory
 * of its own size), a judgement stands whatever follows, and before the empty line there is none.
 */
#include "base/require.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/ipc/http.h"

static enum http_request judge(const uint8_t *bytes, size_t size)
{
	char *copy = malloc(size == 0 ? 1 : size);
	enum http_request request;

	REQUIRE(copy != NULL);
	memcpy(copy, bytes, size);
	request = http_judge(copy, size);
	free(copy);
	return request;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	enum http_request whole = judge(bytes, size);
	enum http_request half = judge(bytes, size / 2);

	REQUIRE(half == HTTP_MORE || half == whole);
	REQUIRE(whole < HTTP_N_VALUES);
	if (memmem(bytes, size, "\n\n", 2) == NULL && memmem(bytes, size, "\n\r\n", 3) == NULL) {
		REQUIRE(whole == HTTP_MORE);
	}
	return 0;
}
