/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intrusive doubly linked list. The owner of each link is named where the link is
 * declared. An unlinked link points to itself. Not thread-safe.
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
	struct list *prev;
	struct list *next;
};

static inline void list_init(struct list *list)
{
	list->prev = list;
	list->next = list;
}

static inline bool list_is_empty(const struct list *list)
{
	return list->next == list;
}

static inline void list_insert(struct list *after, struct list *link)
{
	link->prev = after;
	link->next = after->next;
	after->next->prev = link;
	after->next = link;
}

static inline void list_append(struct list *list, struct list *link)
{
	list_insert(list->prev, link);
}

/* Unlink; harmless on a link that is in no list. */
static inline void list_remove(struct list *link)
{
	link->prev->next = link->next;
	link->next->prev = link->prev;
	list_init(link);
}

#define container_of(pointer, type, member) \
	((type *)(void *)((char *)(pointer)-offsetof(type, member)))

/* NOLINTBEGIN(bugprone-macro-parentheses): 'link' is declared here */
#define LIST_FOR_EACH(link, head) \
	for (struct list *link = (head)->next; link != (head); link = link->next)

/* The current link may be removed in the body. */
#define LIST_FOR_EACH_SAFE(link, head)                                                    \
	for (struct list *link = (head)->next, *link##_next = link->next; link != (head); \
	     link = link##_next, link##_next = link->next)
/* NOLINTEND(bugprone-macro-parentheses) */

#endif
