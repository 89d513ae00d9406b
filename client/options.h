/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What callers fill: structures of whatever version they were compiled with, and strings that
 * have to be there. Any thread.
 */
#ifndef CLIENT_OPTIONS_H
#define CLIENT_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/gen/wire_gen.h"

#define DONORS_MAX 16 /* devices that an allocation may name as donors */

/*
 * Copy the members that the caller knows into 'ret' of 'size' bytes, which begins with a
 * size_t and is zeroed; 'given' may be NULL. A caller that is newer than we are may have set
 * only members that we know. Returns 0, -DISTORCH_E_BAD_ARGUMENT or -DISTORCH_E_UNSUPPORTED.
 */
int options_take(const void *given, size_t size, void *ret);

/* 0, or -DISTORCH_E_BAD_ARGUMENT naming the argument 'name' that is NULL. */
int options_need(const char *name, const void *given);

/* The same for 'n' strings, which may be none. */
int options_need_all(const char *name, const char *const *texts, size_t n);

/* Such strings as a list for a request, at most 'max' of them: in 'items', which has to live until it
 * is sent. */
int options_texts(const char *name, const char *const *texts, size_t n, size_t max,
		  struct wire_str *items, struct wire_list *ret);

/* A text that may be left out, for a request. */
void options_text(const char *text, bool *ret_has, struct wire_str *ret);

#endif
