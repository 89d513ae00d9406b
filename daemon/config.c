/* SPDX-License-Identifier: Apache-2.0 */
/* Temporary: defaults and --set of a few keys. */
#include "daemon/config.h"
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/units.h"
#include "proto/gen/wire_code.h"
int config_load(const struct config_request *request, struct config **ret, struct err *err)
{
	struct config *c = calloc(1, sizeof *c);
	c->memory_hugepages = true;
	c->limits_connections = 1024;
	c->limits_connections_per_user = 64;
	c->limits_pending_output = 1 << 20;
	c->limits_loads_per_user = 2;
	c->load_direct_io = true;
	c->access_control = "root";
	c->access_group = "";
	c->log_level = LOG_LEVEL_INFO;
	for (uint32_t i = 0; i < request->n_sets; i++) {
		const char *s = request->sets[i];
		if (strncmp(s, "memory.ram=", 11) == 0) {
			c->memory_ram.kind = CONFIG_SIZE_BYTES;
			if (units_parse_size(s + 11, &c->memory_ram.bytes, err) < 0) return -WIRE_BAD_ARGUMENT;
		} else if (strncmp(s, "memory.reserve=", 15) == 0) {
			c->memory_reserve.kind = CONFIG_SIZE_BYTES;
			if (units_parse_size(s + 15, &c->memory_reserve.bytes, err) < 0) return -WIRE_BAD_ARGUMENT;
		}
	}
	*ret = c;
	return 0;
}
struct config *config_free(struct config *config) { free(config); return NULL; }
bool config_next(const struct config *config, uint32_t *cursor, struct config_item *ret) { (void)config; (void)cursor; (void)ret; return false; }
void config_print_reference(FILE *file) { (void)file; }
