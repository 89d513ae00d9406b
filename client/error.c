/* SPDX-License-Identifier: Apache-2.0 */
#include "client/error.h"

#include "base/err.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/convert.h"
#include "client/result.h"
#include "proto/gen/wire_gen.h"

#define NO_CONNECTION_WORD "no-connection"
#define NO_CONNECTION_TEXT "Nobody answers at the socket, or the connection was cut off."
#define NO_CONNECTION_EXIT 3
#define MESSAGE_SIZE       1200

/* The public numbers are the schema's. */
#define SAME(name) _Static_assert((int)DISTORCH_E_##name == (int)WIRE_##name, "the schema decides")
SAME(BAD_FRAME);
SAME(VERSION);
SAME(UNKNOWN_METHOD);
SAME(UNKNOWN_FIELD);
SAME(BAD_ARGUMENT);
SAME(BAD_FD);
SAME(BAD_FILE);
SAME(UNSUPPORTED);
SAME(NOT_FOUND);
SAME(NOT_RESIDENT);
SAME(NOT_ALLOWED);
SAME(BUSY);
SAME(PINNED);
SAME(NO_MEMORY);
SAME(TOO_MANY);
SAME(TOO_LARGE);
SAME(STALE);
SAME(DEVICE_LOST);
SAME(IO);
SAME(CHANGED_WHILE_READING);
SAME(CANCELLED);
SAME(TIMEOUT);
SAME(SHUTTING_DOWN);
SAME(INTERNAL);
_Static_assert(WIRE_N_CODES == 25, "a new code needs its DISTORCH_E_");

/* What one thread keeps. 'error' is a result of its own. */
struct failure {
	const struct distorch *about;
	struct distorch_error *error; /* owner: the failure; NULL: nothing failed */
};

#define NO_DETAILS                                                                          \
	.need = DISTORCH_ABSENT, .budget = DISTORCH_ABSENT, .free = DISTORCH_ABSENT,        \
	.evictable = DISTORCH_ABSENT, .held = DISTORCH_ABSENT, .foreign = DISTORCH_ABSENT,  \
	.in_use = DISTORCH_ABSENT, .pinned = DISTORCH_ABSENT, .sys_errno = DISTORCH_ABSENT, \
	.offset = DISTORCH_ABSENT, .current = DISTORCH_ABSENT, .min = DISTORCH_ABSENT,      \
	.max = DISTORCH_ABSENT

static const struct distorch_error no_error = {.word = "ok", .message = "", NO_DETAILS};
static const struct distorch_error memory_error = {
	NO_DETAILS,
	.code = DISTORCH_E_INTERNAL,
	.exit_code = 1,
	.word = "internal",
	.message = "out of memory in this process",
};

static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static bool has_key;

static void free_failure(void *memory)
{
	struct failure *failure = memory;

	result_free(failure->error);
	free(failure);
}

static void make_key(void)
{
	has_key = pthread_key_create(&key, free_failure) == 0;
}

/* This thread's; NULL without memory. */
static struct failure *failure_own(void)
{
	struct failure *failure;

	(void)pthread_once(&key_once, make_key); /* cannot fail with a valid control */
	if (!has_key) {
		return NULL;
	}
	failure = pthread_getspecific(key);
	if (failure == NULL) {
		failure = calloc(1, sizeof *failure);
		if (failure != NULL && pthread_setspecific(key, failure) != 0) {
			free(failure);
			failure = NULL;
		}
	}
	return failure;
}

void failure_clear(const struct distorch *about)
{
	struct failure *failure = failure_own();

	if (failure != NULL) {
		result_free(failure->error);
		failure->error = NULL;
		failure->about = about;
	}
}

/* Take over 'error' (NULL: no memory for it) and return its code, negative. */
static int failure_keep(struct distorch_error *error)
{
	struct failure *failure = failure_own();

	if (failure != NULL) {
		result_free(failure->error);
		failure->error = error;
	} else {
		result_free(error);
	}
	return error != NULL && failure != NULL ? -error->code : -DISTORCH_E_INTERNAL;
}

const struct distorch_error *distorch_error(const struct distorch *c)
{
	const struct failure *failure = failure_own();

	if (failure == NULL) {
		return &memory_error;
	}
	if (failure->error == NULL || (c != NULL && failure->about != c)) {
		return &no_error;
	}
	return failure->error;
}

const char *distorch_code_word(int code)
{
	int number = code < 0 ? -code : code;

	if (number == DISTORCH_E_NO_CONNECTION) {
		return NO_CONNECTION_WORD;
	}
	if (number <= 0 || number >= WIRE_N_CODES) {
		number = WIRE_INTERNAL;
	}
	return wire_code_info((enum wire_code)number)->word;
}

const char *distorch_code_text(int code)
{
	int number = code < 0 ? -code : code;

	if (number == DISTORCH_E_NO_CONNECTION) {
		return NO_CONNECTION_TEXT;
	}
	if (number <= 0 || number >= WIRE_N_CODES) {
		number = WIRE_INTERNAL;
	}
	return wire_code_info((enum wire_code)number)->text;
}

int distorch_code_exit(int code)
{
	int number = code < 0 ? -code : code;

	if (number == DISTORCH_E_NO_CONNECTION) {
		return NO_CONNECTION_EXIT;
	}
	if (number <= 0 || number >= WIRE_N_CODES) {
		number = WIRE_INTERNAL;
	}
	return wire_code_info((enum wire_code)number)->exit_code;
}

bool distorch_code_is_retryable(int code)
{
	int number = code < 0 ? -code : code;

	return number == DISTORCH_E_NO_CONNECTION ||
	       (number > 0 && number < WIRE_N_CODES &&
		wire_code_info((enum wire_code)number)->is_retryable);
}

static struct distorch_error *error_new(int code)
{
	struct distorch_error *error = result_new(sizeof *error);

	if (error != NULL) {
		*error = (struct distorch_error){
			NO_DETAILS,
			.code = code,
			.word = distorch_code_word(code),
			.exit_code = distorch_code_exit(code),
			.is_retryable = distorch_code_is_retryable(code),
			.message = distorch_code_text(code),
		};
	}
	return error;
}

int failure_set(int code, int sys, const char *hint, const char *format, ...)
{
	struct distorch_error *error = error_new(code);
	char text[MESSAGE_SIZE];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof text, format, arguments); /* a cut message is still one */
	va_end(arguments);
	if (error != NULL) {
		const char *copy = result_text(error, wire_str(text));

		if (copy != NULL) {
			error->message = copy;
		}
		error->hint = hint;
		if (sys != 0) {
			error->sys_errno = (uint64_t)sys;
		}
	}
	return failure_keep(error);
}

int failure_memory(void)
{
	return failure_set(DISTORCH_E_INTERNAL, 0, NULL, "out of memory in this process");
}

int failure_from_err(const struct err *err)
{
	int rc = failure_set(err->code, err->sys, NULL, "%s", err->text);
	struct failure *failure = failure_own();

	if (failure != NULL && failure->error != NULL && err->offset != 0) {
		failure->error->offset = err->offset;
	}
	return rc;
}

static void take_number(bool is_there, uint64_t value, uint64_t *ret)
{
	if (is_there) {
		*ret = value;
	}
}

static bool convert_detail(void *result, const struct wire_error_detail *detail,
			   struct distorch_error *error)
{
	take_number(detail->has_need, detail->need, &error->need);
	take_number(detail->has_budget, detail->budget, &error->budget);
	take_number(detail->has_free, detail->free, &error->free);
	take_number(detail->has_evictable, detail->evictable, &error->evictable);
	take_number(detail->has_held, detail->held, &error->held);
	take_number(detail->has_foreign, detail->foreign, &error->foreign);
	take_number(detail->has_in_use, detail->in_use, &error->in_use);
	take_number(detail->has_pinned, detail->pinned, &error->pinned);
	take_number(detail->has_errno, detail->errno_, &error->sys_errno);
	take_number(detail->has_offset, detail->offset, &error->offset);
	take_number(detail->has_current, detail->current, &error->current);
	take_number(detail->has_min, detail->min, &error->min);
	take_number(detail->has_max, detail->max, &error->max);
	return convert_text(result, detail->has_field, detail->field, &error->field) &&
	       convert_text(result, detail->has_device, detail->device, &error->device) &&
	       (!detail->has_holders ||
		convert_holders(result, detail->holders, &error->holders, &error->n_holders)) &&
	       (!detail->has_uids ||
		convert_numbers(result, detail->uids, &error->uids, &error->n_uids)) &&
	       (!detail->has_models ||
		convert_texts(result, detail->models, &error->candidates, &error->n_candidates));
}

/* Everything but the structure itself, into 'result'. */
static bool error_fill(void *result, const struct wire_error *from, struct distorch_error *error)
{
	enum wire_code code = wire_code_find(from->code);

	*error = (struct distorch_error){
		NO_DETAILS,
		.code = (int)code,
		.exit_code = distorch_code_exit((int)code),
		.is_retryable = from->retryable,
	};
	return convert_text(result, true, from->code, &error->word) &&
	       convert_text(result, true, from->message, &error->message) &&
	       convert_text(result, from->has_hint, from->hint, &error->hint) &&
	       (!from->has_detail || convert_detail(result, &from->detail, error));
}

struct distorch_error *error_convert(void *result, const struct wire_error *from)
{
	struct distorch_error *error = result_add(result, sizeof *error);

	return error != NULL && error_fill(result, from, error) ? error : NULL;
}

int failure_from_wire(const struct wire_error *from)
{
	struct distorch_error *error = result_new(sizeof *error);

	if (error == NULL || !error_fill(error, from, error)) {
		result_free(error);
		return failure_memory();
	}
	return failure_keep(error);
}
