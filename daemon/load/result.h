/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the load room: results for which no memory is needed. Any thread. */
#ifndef LOAD_RESULT_H
#define LOAD_RESULT_H

#include "daemon/load/loader.h"

/* Zeroed but for what marks it; goes back with load_result_free. NULL: all are under way. */
struct load_result *result_take_spare(void);

#endif
