/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calling thread's last failure, as distorch_error() shows it. Every public function
 * begins with failure_clear and fills it where the failure happens; inside the library only
 * the negative code is handed up. Any thread.
 */
#ifndef CLIENT_ERROR_H
#define CLIENT_ERROR_H

#include "client/include/distorch.h"
#include "proto/wire.h"

struct err;
struct wire_error;

/* Nothing failed yet in this call on 'about' (a connection, or NULL). */
void failure_clear(const struct distorch *about);

/* Fill it; 'sys' is an errno or 0, 'hint' static or NULL. Returns -code. */
int failure_set(int code, int sys, const char *hint, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* Out of memory in this process. */
int failure_memory(void);

/* From a room of ours. */
int failure_from_err(const struct err *err);

/* From the error map of a response. */
int failure_from_wire(const struct wire_error *from);

/* The same as a structure inside a result (for events). NULL without memory. */
struct distorch_error *error_convert(void *result, const struct wire_error *from);

#endif
