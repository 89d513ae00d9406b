/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes and durations as people write them: exact, checked, in one place for the command
 * line, the configuration and the planner. Pure; any thread.
 */
#ifndef BASE_UNITS_H
#define BASE_UNITS_H

#include <stddef.h>
#include <stdint.h>

struct err;

#define UNITS_FOREVER UINT64_MAX /* a duration that never ends */

/*
 * Parse "48G", "2.5gb", "512 MiB", "1048576": powers of 1024 whether or not the i is
 * written, blanks around allowed, case does not matter. A fraction needs a unit and must
 * come out as at least one byte. Returns 0, or -WIRE_BAD_ARGUMENT naming the text.
 */
int units_parse_size(const char *text, uint64_t *ret_bytes, struct err *err);
/* Likewise of what is set or made by it: a number other than 0 needs its unit. */
int units_parse_size_with_unit(const char *text, uint64_t *ret_bytes, struct err *err);

/*
 * Parse "250ms", "10us", "30s", "5m", "2h", "3d", "1h30m", "forever", "0": nanoseconds,
 * or UNITS_FOREVER. A bare number other than 0 is refused: it asks for a unit.
 */
int units_parse_duration(const char *text, uint64_t *ret_ns, struct err *err);

/* "40%" or "12.5%" in thousandths of a percent (40000, 12500); at most 100000. */
int units_parse_percent(const char *text, uint32_t *ret_milli_pct, struct err *err);

/* "2.5" in billionths, with at most 9 decimals: a plain number without sign or unit. */
int units_parse_decimal(const char *text, uint64_t *ret_billionths, struct err *err);

/* "11.1G", "320M", "512": four significant characters at most. Returns 'buffer'. */
const char *units_format_size(uint64_t bytes, char *buffer, size_t buffer_size);

/* The same with powers of 1000. */
const char *units_format_size_si(uint64_t bytes, char *buffer, size_t buffer_size);

/* "48m", "3d 4h", "12s", "250ms", "forever". Returns 'buffer'. */
const char *units_format_duration(uint64_t ns, char *buffer, size_t buffer_size);

/* "62%", "<1%", ">99%": what is more than nothing and less than all never reads as that. Returns
 * 'buffer'. */
const char *units_format_share(uint64_t part, uint64_t total, char *buffer, size_t buffer_size);

#endif
