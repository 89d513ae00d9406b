/* SPDX-License-Identifier: Apache-2.0 */
/* Load a model file with progress and say where it is. C99: cc load.c $(pkg-config --cflags --libs distorch) */
#include <distorch.h>
#include <stdio.h>
#include <string.h>

static int show_progress(const struct distorch_progress *progress, void *user)
{
	(void)user;
	fprintf(stderr, "\r%s %llu of %llu bytes", progress->phase,
		(unsigned long long)progress->bytes, (unsigned long long)progress->total);
	return 0; /* anything else cancels the load */
}

static int fail(struct distorch *c)
{
	const struct distorch_error *error = distorch_error(c);
	int status = error->exit_code;

	fprintf(stderr, "error: %s\n", error->message);
	if (error->hint != NULL) {
		fprintf(stderr, "hint:  %s\n", error->hint);
	}
	distorch_close(c);
	return status;
}

int main(int argc, char **argv)
{
	struct distorch_load_options options;
	struct distorch_loaded *loaded;
	struct distorch *c = NULL;
	size_t i;

	if (argc != 2) {
		fprintf(stderr, "usage: %s FILE\n", argv[0]);
		return 2;
	}
	if (distorch_open(NULL, NULL, &c) < 0) {
		return fail(NULL);
	}
	memset(&options, 0, sizeof options);
	options.size = sizeof options;
	options.progress = show_progress;
	if (distorch_load(c, argv[1], &options, &loaded, NULL) < 0) {
		return fail(c);
	}
	fprintf(stderr, "\n");
	printf("%s: %llu bytes, %llu %s, from %s\n", loaded->model->id,
	       (unsigned long long)loaded->model->bytes, (unsigned long long)loaded->model->tensors,
	       loaded->model->tensors == 1 ? "tensor" : "tensors", loaded->source);
	for (i = 0; i < loaded->model->n_where; i++) {
		printf("  %llu bytes on %s\n", (unsigned long long)loaded->model->where[i]->bytes,
		       loaded->model->where[i]->device);
	}
	distorch_loaded_free(loaded);
	distorch_close(c);
	return 0;
}
