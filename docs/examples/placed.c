/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load a model over devices, tell where each block lies, and read its tensors there.
 *
 *   placed FILE [ALLOCATION]
 *   placed flux1-dev.safetensors 'cuda:0,6gb;cpu,*'
 *
 * cc placed.c $(pkg-config --cflags --libs distorch)
 */
#include <distorch.h>
#include <stdio.h>

static int failed(const struct distorch *c)
{
	const struct distorch_error *error = distorch_error(c);

	fprintf(stderr, "error: %s\n", error->message);
	if (error->hint != NULL) {
		fprintf(stderr, "hint:  %s\n", error->hint);
	}
	return error->exit_code;
}

/* Of all bytes of a block's tensors, each read where it lies. */
static unsigned long long sum_of(const struct distorch_weights *weights, uint32_t block)
{
	unsigned long long sum = 14695981039346656037ULL; /* FNV-1a */

	for (uint32_t i = 0; i < distorch_weights_n_tensors(weights); i++) {
		const struct distorch_tensor *tensor = distorch_weights_tensor(weights, i);
		const unsigned char *bytes = tensor->data; /* NULL: in the memory of a card */

		for (uint64_t j = 0; tensor->block == block && bytes != NULL && j < tensor->bytes;
		     j++) {
			sum = (sum ^ bytes[j]) * 1099511628211ULL;
		}
	}
	return sum;
}

static void tell(const struct distorch_weights *weights)
{
	for (uint32_t i = 0; i < distorch_weights_n_blocks(weights); i++) {
		const struct distorch_block *block = distorch_weights_block(weights, i);

		/* Names come from the file: make control characters harmless in a real program. */
		printf("%s\t%llu\t%s\t%016llx\n", block->name, (unsigned long long)block->bytes,
		       block->device, sum_of(weights, i));
	}
}

int main(int argc, char **argv)
{
	struct distorch_load_options options = {.size = sizeof options};
	struct distorch_weights *weights = NULL;
	struct distorch *c = NULL;

	if (argc < 2) {
		fprintf(stderr, "usage: placed FILE [ALLOCATION]\n");
		return 2;
	}
	options.allocation = argc > 2 ? argv[2] : "cpu";
	if (distorch_open(NULL, NULL, &c) < 0) {
		return failed(NULL);
	}
	if (distorch_load(c, argv[1], &options, NULL, &weights) < 0) {
		int status = failed(c);

		distorch_close(c);
		return status;
	}
	tell(weights);
	/* Before the tensors of cards are used: distorch_map_cuda(weights). */
	distorch_weights_unref(weights);
	distorch_close(c);
	return 0;
}
