/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cards of the stand-in driver. They live in a folder (FAKECUDA_DIR, on a tmpfs) that all
 * processes share: an allocation is a file there, whose description holds a lock. The lock goes
 * with the last reference to the description, descriptors and mappings of every process
 * included, so what is in use is what the kernel says, also after SIGKILL.
 *
 *   FAKECUDA_CARDS   bytes of each card, "256M,128M"; one of 256M without it
 *   FAKECUDA_ORDER   which card is at which place, "1,0"; as they are without it
 *   FAKECUDA_CONTEXT bytes of a card that a process's context on it takes, "2M"; none without it
 *   FAKECUDA_PEERS   "none": no card reaches another; all do without it
 *   DIR/N/foreign    bytes that others use of card N
 *   DIR/N/temperature   DIR/N/xid   DIR/N/nvml: see nvml.c
 *   DIR/N/stop-create   DIR/N/stop-look   DIR/N/stop-counted   while that is a number but 0
 *                       cuMemCreate waits, which has its memory, and NVML, before it counts what is
 *                       used, and after
 */
#ifndef TESTS_FAKECUDA_CARD_H
#define TESTS_FAKECUDA_CARD_H

#include <stdbool.h>
#include <stdint.h>

#define CARDS_MAX    8
#define CARD_GRANULE (2ULL << 20)

struct card {
	uint32_t number; /* what its UUID and its folder are made of */
	uint64_t bytes;
	char uuid[64]; /* "GPU-..." */
	char pci[16];
};

/* Those there are, in the order of their PCI addresses; 0 without a folder. */
uint32_t cards_read(struct card *cards);

/* Bytes in use, those of others included; with 'needed' > 0 also room for a new allocation, whose
 * descriptor is stored (-1: there is no room). */
uint64_t card_use(const struct card *card, uint64_t needed, int *ret_fd);

uint64_t card_context_bytes(void);

/* Whose memory a descriptor is: the number of its card and its bytes. */
bool card_of_fd(int fd, uint32_t *ret_number, uint64_t *ret_bytes);

/* A number that a test put into the card's folder; 0 where there is none. Or several. */
uint64_t card_number_of(const struct card *card, const char *file);
uint32_t card_numbers_of(const struct card *card, const char *file, uint64_t *ret,
			 uint32_t max_numbers);

/* Wait while there is one. */
void card_wait(const struct card *card, const char *file);

#endif
