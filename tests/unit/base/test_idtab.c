/* SPDX-License-Identifier: Apache-2.0 */
/* Ids: a stale or invented one finds nothing, whatever happened in between. */
#include "base/idtab.h"
#include "tests/support/dies.h"
#include "tests/support/unit.h"

#include <stdlib.h>
#include <string.h>

#define CAPACITY 4

struct thing {
	struct idtab_slot slot;
	int number;
};

struct table {
	struct idtab tab;
	struct thing things[CAPACITY];
};

static void make(struct table *table)
{
	memset(table, 0, sizeof *table);
	idtab_init(&table->tab, table->things, sizeof table->things[0], CAPACITY);
}

static void what_is_added_is_found_by_its_id(void **state)
{
	struct table table;
	uint64_t id = 0;
	struct thing *thing;

	(void)state;
	make(&table);
	thing = idtab_add(&table.tab, &id);
	assert_non_null(thing);
	assert_true(id != 0);
	assert_int_equal(thing->number, 0);
	assert_ptr_equal(idtab_find(&table.tab, id), thing);
	assert_true(idtab_id(&table.tab, thing) == id);
	assert_int_equal(table.tab.n_used, 1);
}

static void a_removed_id_stays_dead_when_its_slot_lives_again(void **state)
{
	struct table table;
	uint64_t old = 0;
	uint64_t fresh = 0;
	struct thing *thing;

	(void)state;
	make(&table);
	thing = idtab_add(&table.tab, &old);
	thing->number = 5;
	idtab_remove(&table.tab, thing);
	assert_null(idtab_find(&table.tab, old));
	assert_int_equal(table.tab.n_used, 0);
	assert_ptr_equal(idtab_add(&table.tab, &fresh), thing);
	assert_int_equal(thing->number, 0);
	assert_true(fresh != old);
	assert_null(idtab_find(&table.tab, old));
	assert_ptr_equal(idtab_find(&table.tab, fresh), thing);
}

/* Two lives of a program that begin elsewhere have no id in common. */
static void ids_begin_where_they_are_told_to(void **state)
{
	struct table table;
	uint64_t id = 0;
	struct thing *thing;

	(void)state;
	make(&table);
	table.tab.first_tag = 6;
	assert_non_null(idtab_add(&table.tab, &id));
	assert_true(id == ((uint64_t)7 << 32 | 1));
	thing = idtab_add(&table.tab, &id);
	assert_true(id == ((uint64_t)7 << 32 | 2));
	assert_null(idtab_find(&table.tab, (uint64_t)1 << 32 | 2));
	idtab_remove(&table.tab, thing);
	assert_ptr_equal(idtab_add(&table.tab, &id), thing);
	assert_true(id == ((uint64_t)9 << 32 | 2));
}

static void invented_ids_find_nothing(void **state)
{
	struct table table;
	uint64_t id = 0;

	(void)state;
	make(&table);
	assert_null(idtab_find(&table.tab, 0));
	assert_null(idtab_find(&table.tab, 1));
	assert_non_null(idtab_add(&table.tab, &id));
	assert_null(idtab_find(&table.tab, 0));
	assert_null(idtab_find(&table.tab, id + 1));              /* never used */
	assert_null(idtab_find(&table.tab, id + CAPACITY));       /* outside */
	assert_null(idtab_find(&table.tab, id & ~0xffffffffULL)); /* index 0 */
	assert_null(idtab_find(&table.tab, id + (1ULL << 32)));   /* another tag, even */
	assert_null(idtab_find(&table.tab, id + (2ULL << 32)));   /* another tag, odd */
	assert_null(idtab_find(&table.tab, UINT64_MAX));
}

static void the_tag_of_a_free_slot_finds_nothing(void **state)
{
	struct table table;
	uint64_t id = 0;

	(void)state;
	make(&table);
	idtab_remove(&table.tab, idtab_add(&table.tab, &id));
	/* The slot's tag is now one more than the id's; guessing it must not help. */
	assert_null(idtab_find(&table.tab, id + (1ULL << 32)));
}

static void a_full_table_gives_nothing_until_one_goes(void **state)
{
	struct table table;
	struct thing *things[CAPACITY];
	uint64_t id = 0;

	(void)state;
	make(&table);
	for (int i = 0; i < CAPACITY; i++) {
		things[i] = idtab_add(&table.tab, &id);
		assert_non_null(things[i]);
	}
	id = 77;
	assert_null(idtab_add(&table.tab, &id));
	assert_true(id == 77);
	idtab_remove(&table.tab, things[1]);
	idtab_remove(&table.tab, things[3]);
	assert_ptr_equal(idtab_add(&table.tab, &id), things[3]);
	assert_ptr_equal(idtab_add(&table.tab, &id), things[1]);
	assert_null(idtab_add(&table.tab, &id));
}

static void a_slot_whose_tags_are_used_up_is_retired(void **state)
{
	struct table table;
	uint64_t id = 0;
	struct thing *thing;
	struct thing *next;

	(void)state;
	make(&table);
	thing = idtab_add(&table.tab, &id);
	thing->slot.tag = UINT32_MAX; /* as after two thousand million lives */
	id = idtab_id(&table.tab, thing);
	idtab_remove(&table.tab, thing);
	assert_null(idtab_find(&table.tab, id));
	next = idtab_add(&table.tab, &id);
	assert_non_null(next);
	assert_ptr_not_equal(next, thing);
}

static void a_walk_sees_each_once_and_may_remove(void **state)
{
	struct table table;
	struct thing *thing;
	uint32_t cursor = 0;
	uint64_t id = 0;
	int sum = 0;

	(void)state;
	make(&table);
	assert_null(idtab_next(&table.tab, &cursor));
	for (int i = 0; i < CAPACITY; i++) {
		thing = idtab_add(&table.tab, &id);
		thing->number = 1 << i;
	}
	cursor = 0;
	while ((thing = idtab_next(&table.tab, &cursor)) != NULL) {
		sum += thing->number;
		if (thing->number == 2) {
			idtab_remove(&table.tab, thing);
		}
	}
	assert_int_equal(sum, 15);
	cursor = 0;
	sum = 0;
	while ((thing = idtab_next(&table.tab, &cursor)) != NULL) {
		sum += thing->number;
	}
	assert_int_equal(sum, 13);
}

/* Objects of the caller's own size: nothing outside of a slot is written. */
static void untouched_slots_stay_untouched(void **state)
{
	struct table table;
	static const struct thing zero;
	uint64_t id = 0;

	(void)state;
	make(&table);
	assert_non_null(idtab_add(&table.tab, &id));
	for (int i = 1; i < CAPACITY; i++) {
		assert_memory_equal(&table.things[i], &zero, sizeof zero);
	}
}

static void remove_twice(void *context)
{
	struct table *table = context;
	uint64_t id = 0;
	struct thing *thing = idtab_add(&table->tab, &id);

	idtab_remove(&table->tab, thing);
	idtab_remove(&table->tab, thing);
}

static void remove_stranger(void *context)
{
	struct table *table = context;
	struct thing stranger = {.slot.tag = 1};

	idtab_remove(&table->tab, &stranger);
}

static void remove_from_the_middle_of_a_slot(void *context)
{
	struct table *table = context;
	uint64_t id = 0;
	char *thing = idtab_add(&table->tab, &id);

	table->things[0].number = 1;
	idtab_remove(&table->tab, thing + offsetof(struct thing, number));
}

static void ask_id_of_a_removed_one(void *context)
{
	struct table *table = context;
	uint64_t id = 0;
	struct thing *thing = idtab_add(&table->tab, &id);

	idtab_remove(&table->tab, thing);
	(void)idtab_id(&table->tab, thing);
}

static void init_with_slots_too_small(void *context)
{
	struct table *table = context;

	idtab_init(&table->tab, table->things, sizeof(struct idtab_slot) - 1, CAPACITY);
}

static void faults_of_the_caller_abort(void **state)
{
	struct table table;

	(void)state;
	make(&table);
	assert_dies(remove_twice, &table);
	assert_dies(remove_stranger, &table);
	assert_dies(remove_from_the_middle_of_a_slot, &table);
	assert_dies(ask_id_of_a_removed_one, &table);
	assert_dies(init_with_slots_too_small, &table);
}

/* Any order of adds and removes against a plain array. */
static void random_histories_agree_with_an_array(void **state)
{
	struct table table;
	uint64_t ids[64] = {0};
	int numbers[64] = {0};
	bool is_alive[64] = {false};
	unsigned seed = 1;

	(void)state;
	make(&table);
	for (int step = 0; step < 20000; step++) {
		int n = rand_r(&seed) % 64;
		struct thing *thing = idtab_find(&table.tab, ids[n]);

		assert_int_equal(thing != NULL, is_alive[n]);
		if (thing != NULL) {
			assert_int_equal(thing->number, numbers[n]);
			idtab_remove(&table.tab, thing);
			is_alive[n] = false;
		} else if ((thing = idtab_add(&table.tab, &ids[n])) != NULL) {
			thing->number = numbers[n] = step;
			is_alive[n] = true;
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_added_is_found_by_its_id),
		cmocka_unit_test(a_removed_id_stays_dead_when_its_slot_lives_again),
		cmocka_unit_test(ids_begin_where_they_are_told_to),
		cmocka_unit_test(invented_ids_find_nothing),
		cmocka_unit_test(the_tag_of_a_free_slot_finds_nothing),
		cmocka_unit_test(a_full_table_gives_nothing_until_one_goes),
		cmocka_unit_test(a_slot_whose_tags_are_used_up_is_retired),
		cmocka_unit_test(a_walk_sees_each_once_and_may_remove),
		cmocka_unit_test(untouched_slots_stay_untouched),
		cmocka_unit_test(faults_of_the_caller_abort),
		cmocka_unit_test(random_histories_agree_with_an_array),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
