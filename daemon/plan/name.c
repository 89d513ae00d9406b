/* SPDX-License-Identifier: Apache-2.0 */
/* Names of devices. See name.h. */
#include "daemon/plan/name.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

#define LEAST_UUID 8

enum match { MATCH_WHOLE, MATCH_END, MATCH_WORDS, MATCH_N_KINDS };

static char to_lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_same(const char *a, const char *b, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (to_lower(a[i]) != to_lower(b[i])) {
			return false;
		}
	}
	return true;
}

struct plan_text text_trim(struct plan_text text)
{
	while (text.size > 0 && is_blank(text.text[0])) {
		text.text++;
		text.size--;
	}
	while (text.size > 0 && is_blank(text.text[text.size - 1])) {
		text.size--;
	}
	return text;
}

bool text_is(struct plan_text text, const char *word)
{
	return strlen(word) == text.size && is_same(text.text, word, text.size);
}

const char *text_print(struct plan_text text, char *buffer, size_t buffer_size)
{
	char copy[80];
	size_t size = text.size < sizeof copy - 1 ? text.size : sizeof copy - 1;

	memcpy(copy, text.size == 0 ? "" : text.text, size);
	/* What is behind a NUL is not shown: it is refused for other reasons. */
	copy[size] = '\0';
	return text_escape(copy, buffer, buffer_size);
}

static bool is_known(const char *text)
{
	return text != NULL && text[0] != '\0';
}

/* Do 'words' stand in 'name' from 'at' on, as whole words? */
static bool has_words_at(const char *name, size_t at, struct plan_text words)
{
	return (at == 0 || is_blank(name[at - 1])) && is_same(&name[at], words.text, words.size) &&
	       (name[at + words.size] == '\0' || is_blank(name[at + words.size]));
}

static bool is_product(const char *product, struct plan_text text, enum match match)
{
	size_t size = strlen(product);

	if (text.size == 0 || text.size > size) {
		return false;
	}
	if (match == MATCH_WHOLE) {
		return text_is(text, product);
	}
	if (match == MATCH_END) {
		return has_words_at(product, size - text.size, text);
	}
	for (size_t at = 0; at <= size - text.size; at++) {
		if (has_words_at(product, at, text)) {
			return true;
		}
	}
	return false;
}

static bool is_named(const struct plan_device *device, struct plan_text text)
{
	if (device->is_host &&
	    (text_is(text, "cpu") || text_is(text, "ram") || text_is(text, "host"))) {
		return true;
	}
	return is_known(device->name) && text_is(text, device->name);
}

static bool has_uuid(const struct plan_device *device, struct plan_text text)
{
	return is_known(device->name) && is_known(device->uuid) && text.size >= LEAST_UUID &&
	       strlen(device->uuid) >= text.size && is_same(device->uuid, text.text, text.size);
}

uint32_t name_find(const struct plan_device *devices, uint32_t n_devices, struct plan_text text)
{
	uint32_t found = 0;

	for (uint32_t i = 0; i < n_devices; i++) {
		if (is_named(&devices[i], text)) {
			return 1U << i;
		}
		found |= has_uuid(&devices[i], text) ? 1U << i : 0;
	}
	/* "RTX 4080" is the end of one name and stands within "RTX 4080 SUPER". */
	for (unsigned match = 0; match < MATCH_N_KINDS && found == 0; match++) {
		for (uint32_t i = 0; i < n_devices; i++) {
			if (is_known(devices[i].name) && is_known(devices[i].product) &&
			    is_product(devices[i].product, text, (enum match)match)) {
				found |= 1U << i;
			}
		}
	}
	return found;
}

uint32_t name_count(uint32_t found)
{
	uint32_t count = 0;

	for (; found != 0; found &= found - 1) {
		count++;
	}
	return count;
}

uint32_t name_first(uint32_t found)
{
	return (uint32_t)__builtin_ctz(found);
}

/* "NVIDIA GeForce RTX 4090" without the words that say nothing. */
static const char *short_product(const char *product)
{
	static const char *const heads[] = {"NVIDIA ", "GeForce "};

	for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
		size_t size = strlen(heads[i]);

		if (strncmp(product, heads[i], size) == 0 && product[size] != '\0') {
			product += size;
		}
	}
	return product;
}

/* "0000:01:00.0" as "01:00"; a domain that is not the first stays. */
static void short_pci(const char *pci, char *buffer, size_t buffer_size)
{
	size_t size;

	if (strncmp(pci, "0000:", 5) == 0) {
		pci += 5;
	} else if (strncmp(pci, "00000000:", 9) == 0) {
		pci += 9;
	}
	size = strlen(pci);
	if (size > 2 && strcmp(&pci[size - 2], ".0") == 0) {
		size -= 2;
	}
	(void)snprintf(buffer, buffer_size, "%.*s", (int)(size < 16 ? size : 16), pci);
}

const char *name_label(const struct plan_device *device, char *buffer, size_t buffer_size)
{
	const char *name = device->is_host ? "ram" : device->name;
	char product[48];
	char pci[20] = "";
	bool has_pci = is_known(device->pci);

	(void)text_escape(is_known(device->product) ? short_product(device->product) : "", product,
			  sizeof product);
	if (has_pci) {
		short_pci(device->pci, pci, sizeof pci);
	}
	if (product[0] == '\0' && !has_pci) {
		(void)snprintf(buffer, buffer_size, "%.24s", name);
	} else {
		(void)snprintf(buffer, buffer_size, "%.24s (%s%s%s)", name, product,
			       product[0] == '\0' ? "PCI "
			       : has_pci          ? ", PCI "
						  : "",
			       pci);
	}
	return buffer;
}

const char *name_list(const struct plan_device *devices, uint32_t n_devices, uint32_t set,
		      char *buffer, size_t buffer_size)
{
	size_t used = 0;

	buffer[0] = '\0';
	for (uint32_t i = 0; i < n_devices; i++) {
		const char *name = devices[i].is_host ? "ram" : devices[i].name;
		size_t size = strlen(name) + (used == 0 ? 0 : 2);

		if (!is_known(name) || (set >> i & 1) == 0) {
			continue;
		}
		if (size + 5 >= buffer_size - used) {
			(void)snprintf(buffer + used, buffer_size - used, ", ...");
			break;
		}
		(void)snprintf(buffer + used, buffer_size - used, "%s%s", used == 0 ? "" : ", ",
			       name);
		used += size;
	}
	return buffer;
}
