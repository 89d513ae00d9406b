/* SPDX-License-Identifier: Apache-2.0 */
/* See placement.h. */
#include "placement.h"

#include "base/err.h"
#include "base/units.h"

#include <stdio.h>
#include <string.h>

#define BLANKS " \t"

static int read_virtual_vram(struct ctl *ctl, struct placement *placement)
{
	const char *text = ctl->arguments.virtual_vram;
	struct err err = {0};
	char with_unit[48];

	if (text == NULL) {
		return EXIT_DONE;
	}
	/* A number alone is GiB, as the nodes of ComfyUI-MultiGPU have it. */
	(void)snprintf(with_unit, sizeof with_unit,
		       strspn(text, "0123456789.") == strlen(text) ? "%.40sG" : "%.40s", text);
	if (units_parse_size(with_unit, &placement->wanted.virtual_vram, &err) < 0) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "--virtual-vram: %s",
				  err.text);
	}
	return placement->wanted.virtual_vram > 0
		       ? EXIT_DONE
		       : ctl_refuse(ctl, EXIT_USAGE, "bad-argument", "--virtual-vram 4",
				    "--virtual-vram %.40s moves nothing", text);
}

/* The next name of a list; NULL: there is none left. Names may have blanks within them. */
static char *next_name(char **rest)
{
	while (**rest != '\0') {
		char *name = *rest + strspn(*rest, BLANKS);
		size_t size = strcspn(name, ",;");
		bool is_last = name[size] == '\0';

		*rest = name + size + (is_last ? 0 : 1);
		while (size > 0 && strchr(BLANKS, name[size - 1]) != NULL) {
			size--;
		}
		name[size] = '\0';
		if (size > 0) {
			return name;
		}
	}
	return NULL;
}

static int read_donors(struct ctl *ctl, struct placement *placement)
{
	const char *given = ctl->arguments.donors;
	char *rest = placement->texts;

	if (given == NULL) {
		return EXIT_DONE;
	}
	if (strlen(given) >= sizeof placement->texts) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL, "--donors is too long");
	}
	(void)snprintf(placement->texts, sizeof placement->texts, "%s", given);
	for (char *name = next_name(&rest); name != NULL; name = next_name(&rest)) {
		if (placement->wanted.n_donors == PLACEMENT_MAX_DONORS) {
			return ctl_refuse(ctl, EXIT_USAGE, "bad-argument", NULL,
					  "--donors has more than %d", PLACEMENT_MAX_DONORS);
		}
		placement->donors[placement->wanted.n_donors++] = name;
	}
	return EXIT_DONE;
}

/* Blanks and the marks between items. */
static bool says_nothing(const char *allocation)
{
	return allocation[strspn(allocation, BLANKS "\r\n;|")] == '\0';
}

int placement_read(struct ctl *ctl, const char *allocation, struct placement *ret)
{
	const struct arguments *arguments = &ctl->arguments;
	int status;

	if (allocation != NULL && arguments->virtual_vram == NULL && says_nothing(allocation)) {
		return ctl_refuse(ctl, EXIT_USAGE, "bad-argument",
				  "ram, 'cuda:0,6gb;cpu,*' or auto; see plan --help",
				  "an empty allocation does not say where the blocks are to go");
	}
	*ret = (struct placement){.wanted = {.size = sizeof ret->wanted,
					     .allocation = allocation,
					     .compute = arguments->compute,
					     .strategy = arguments->strategy,
					     .granularity = arguments->granularity}};
	ret->wanted.donors = ret->donors;
	status = read_virtual_vram(ctl, ret);
	return status != EXIT_DONE ? status : read_donors(ctl, ret);
}
