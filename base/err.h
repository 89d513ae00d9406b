/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A failure of the world, filled where it happened and handed up unchanged. The code is
 * one of the protocol's words (proto/gen/wire_code.h), so that it is chosen once, by the
 * place that knows; errno stays detail. No allocation; any thread.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdint.h>

#define ERR_TEXT_SIZE 256

struct err {
	int code;                 /* enum wire_code; 0 means nothing failed */
	int sys;                  /* errno, or 0 */
	int driver;               /* a device driver's own code, or 0 */
	uint64_t offset;          /* byte in the file where it happened, or 0 */
	const char *where;        /* function that failed; static storage */
	char text[ERR_TEXT_SIZE]; /* one sentence for people: the thing and the number */
};

/* Fill 'err' (NULL is fine). */
void err_set_at(struct err *err, const char *where, int code, int sys, const char *format, ...)
	__attribute__((format(printf, 5, 6)));

/* The same; -code, so that a caller can return it directly and analyzers see that it is not 0. */
#define err_set(err, code, ...) err_set_sys((err), (code), 0, __VA_ARGS__)
#define err_set_sys(err, code, sys, ...) \
	(err_set_at((err), __func__, (code), (sys), __VA_ARGS__), err_result(code))

static inline int err_result(int code)
{
	return -code;
}

/*
 * Put "prefix: " before the text; code and errno stay. Returns -err->code, so keep the
 * callee's own result where 'err' may be NULL: then it is -WIRE_INTERNAL.
 */
int err_wrap(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
