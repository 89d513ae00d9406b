/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What callers fill: structures of whatever version they were compiled with, and strings that
 * have to be there. Any thread.
 */
#ifndef CLIENT_OPTIONS_H
#define CLIENT_OPTIONS_H

#include <stddef.h>

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

#endif
