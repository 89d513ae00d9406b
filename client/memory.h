/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that came as a descriptor, as a private mapping of this process. Any thread. */
#ifndef CLIENT_MEMORY_H
#define CLIENT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Is it memory of which nothing can be cut off or changed? */
bool memory_is_sealed(int fd);

/* Map 'bytes' of it at an address that 2 MiB pages can back; NULL with errno. And unmap what that
 * gave. */
void *memory_map(int fd, size_t bytes);
void memory_unmap(void *base, size_t bytes);

#endif
