/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Model files as hostile input: bytes in, tensor map out. Two steps: format_probe judges the
 * first bytes of a file and says how much of it the parser needs; format_parse turns that
 * much into a tensor map. A file is refused before any memory is taken for it, and nothing
 * is ever allocated by what a header merely claims. Pure but for memory; any thread.
 *
 * safetensors: stricter than the safetensors package, on purpose: a header begins with '{'; names hold no
 * NUL, are unique and at most 4,096 bytes; rank <= 64; integers <= 2^53; tensors <= 262,144;
 * `__metadata__` <= 16 MiB and only once; a tensor is an object with exactly the keys dtype,
 * shape and data_offsets, its dtype a string.
 *
 * GGUF: versions 2 and 3, little-endian; a header of at most 100,000,000 bytes, 65,536 keys and
 * as many tensors as above; no array of arrays; keys and names unique; alignment a uint32,
 * a power of two up to 1 MiB; 1 to 4 dimensions, none of them 0; offsets as ggml has them: each
 * tensor begins where the one before it ends, padded to the alignment. Padding behind the last
 * one may be missing. Shapes are numpy's: ggml's, reversed.
 *
 * raw: any file as one tensor "data", U8, of all its bytes; only where it is asked for.
 */
#ifndef FORMAT_FORMAT_H
#define FORMAT_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define FORMAT_PROBE_SIZE  65536 /* give format_probe so many bytes, or the whole file */
#define FORMAT_MAX_NAME    4096
#define FORMAT_MAX_RANK    64
#define FORMAT_MAX_TENSORS 262144
#define FORMAT_MAX_HEADER  100000000 /* bytes of JSON, as the safetensors package; of GGUF */
#define FORMAT_MAX_BLOCK   (1ULL << 30)
#define FORMAT_N_NOTICES   2

/* The numbers stand in tables (proto/schema.toml). */
enum format { FORMAT_AUTO = 0, FORMAT_SAFETENSORS = 1, FORMAT_GGUF = 2, FORMAT_RAW = 3 };

enum component { COMPONENT_WHOLE = 0, COMPONENT_UNET = 1, COMPONENT_CLIP = 2, COMPONENT_VAE = 3 };

/* Names are valid UTF-8 without NUL, not terminated; they may hold any other control byte. */
struct tensor {
	const char *name;
	uint32_t name_size;
	uint16_t dtype; /* enum wire_dtype */
	uint8_t rank;
	const uint64_t *shape; /* 'rank' of them */
	uint64_t offset, size; /* bytes in the file */
	uint32_t block;        /* index into blocks */
	uint32_t shard;        /* which file, of a joined map */
};

/* The planner's unit, in execution order. Its tensors are those that name it; they need not
 * be neighbours in the file. */
struct block {
	const char *name; /* "double_blocks.7", "(head)", "vae.(head)", and of further parts with
			     "#2", "#3", ... behind */
	uint32_t name_size;
	uint32_t first_tensor; /* the first of its tensors in file order */
	uint32_t n_tensors;
	uint32_t component; /* enum component */
	uint64_t size;      /* bytes of its tensors */
	bool is_head;       /* the part of its component that has no numbered place */
};

struct tensor_map {
	enum format format;
	uint32_t n_tensors;
	uint32_t n_blocks;
	uint32_t n_notices;
	const struct tensor *tensors; /* in file order: ascending, no two overlap; file by file */
	const struct block *blocks;
	uint64_t data_offset, file_size;     /* tensors lie in [data_offset, file_size); those of
						safetensors cover it, GGUF's have padding between */
	char notices[FORMAT_N_NOTICES][160]; /* worth telling, nothing wrong */
	uint16_t split_no,
		split_count; /* GGUF: it is one of several files, the first is 0; 0, 0: it is not */
	void *tensor_memory; /* tensors, shapes, names */
	void *block_memory;  /* blocks and the names of their parts */
	struct tensor_map **parts; /* of the files that were joined (join.h), else NULL; owned */
	uint32_t n_parts;
};

/* Files that the map is of, and the size of one. */
uint32_t tensor_map_n_shards(const struct tensor_map *map);
uint64_t tensor_map_shard_size(const struct tensor_map *map, uint32_t shard);

/* "auto", "safetensors", "gguf", "raw". Returns 0 or -WIRE_BAD_ARGUMENT. */
int format_find(const char *name, size_t size, enum format *ret);

/*
 * Judge the first 'size' bytes of a file (all of it, or at least FORMAT_PROBE_SIZE): which
 * format it is and how many bytes from its start format_parse needs (at most 8 +
 * FORMAT_MAX_HEADER). Where that is more than 'size', it may be a guess: read so many and ask
 * again. Refuses what is already wrong in these bytes, so a longer piece judges more. Allocates
 * nothing. Returns 0; -WIRE_BAD_FILE; -WIRE_UNSUPPORTED for what is not read, as pickles, which
 * can run code.
 */
int format_probe(const void *first, size_t size, uint64_t file_size, enum format wanted,
		 enum format *ret_format, uint64_t *ret_header_bytes, struct err *err);

/*
 * Parse the first 'size' bytes of a file, as many as format_probe asked for. 'header' is
 * only read during the call. The map is the caller's: tensor_map_free. Returns 0,
 * -WIRE_BAD_FILE, -WIRE_UNSUPPORTED or -WIRE_NO_MEMORY; err->offset is the byte in the file.
 */
int format_parse(enum format format, const void *header, size_t size, uint64_t file_size,
		 struct tensor_map **ret_map, struct err *err);

/* NULL is fine. Returns NULL. */
struct tensor_map *tensor_map_free(struct tensor_map *map);

#endif
