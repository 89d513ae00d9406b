/* SPDX-License-Identifier: Apache-2.0 */
/* See xid.h. */
#include "daemon/device/xid.h"

enum xid_class xid_class_of(uint32_t xid)
{
	switch (xid) {
	case 48: /* ECC, double bit */
	case 63: /* pages or rows retired */
	case 64: /* ... which failed */
	case 94: /* ECC, contained */
	case 95: /* ... uncontained */
		return XID_OF_MEMORY;
	case 79:  /* fallen off the bus */
	case 119: /* its own processor does not answer */
	case 120: /* ... or failed */
	case 154: /* to be reset */
		return XID_OF_CARD;
	default:
		return XID_OF_PROGRAM;
	}
}
