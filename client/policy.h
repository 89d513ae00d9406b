/* SPDX-License-Identifier: Apache-2.0 */
/* Wishes as callers say them -> as the wire has them. Any thread. */
#ifndef CLIENT_POLICY_H
#define CLIENT_POLICY_H

#include "client/include/distorch.h"
#include "proto/gen/wire_gen.h"

/* 'given' may be NULL; 'ret' is zeroed. 0 or a negative code with the thread's error. */
int policy_encode(const struct distorch_policy *given, struct wire_policy *ret);

#endif
