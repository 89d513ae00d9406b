/* SPDX-License-Identifier: Apache-2.0 */
/* The intrusive list: order, removal, walks that remove. */
#include "base/list.h"
#include "tests/support/unit.h"

struct item {
	int number;
	struct list link; /* owner: the test's list */
};

static void make(struct item *items, int count, struct list *list)
{
	list_init(list);
	for (int i = 0; i < count; i++) {
		items[i].number = i;
		list_append(list, &items[i].link);
	}
}

static int number_of(struct list *link)
{
	return container_of(link, struct item, link)->number;
}

static void a_new_list_is_empty(void **state)
{
	struct list list;

	(void)state;
	list_init(&list);
	assert_true(list_is_empty(&list));
}

static void append_keeps_the_order_both_ways(void **state)
{
	struct item items[3];
	struct list list;
	int expected = 0;

	(void)state;
	make(items, 3, &list);
	assert_false(list_is_empty(&list));
	LIST_FOR_EACH (link, &list) {
		assert_int_equal(number_of(link), expected++);
	}
	assert_int_equal(expected, 3);
	assert_ptr_equal(list.prev, &items[2].link);
	assert_ptr_equal(items[2].link.prev, &items[1].link);
	assert_ptr_equal(items[0].link.prev, &list);
}

static void insert_puts_behind_the_given_link(void **state)
{
	struct item items[2];
	struct item late = {.number = 9};
	struct list list;
	static const int expected[] = {0, 9, 1};
	int n = 0;

	(void)state;
	make(items, 2, &list);
	list_insert(&items[0].link, &late.link);
	LIST_FOR_EACH (link, &list) {
		assert_int_equal(number_of(link), expected[n++]);
	}
	assert_int_equal(n, 3);
	assert_ptr_equal(items[1].link.prev, &late.link);
}

static void remove_unlinks_and_may_be_repeated(void **state)
{
	struct item items[3];
	struct list list;

	(void)state;
	make(items, 3, &list);
	list_remove(&items[1].link);
	assert_ptr_equal(items[0].link.next, &items[2].link);
	assert_ptr_equal(items[2].link.prev, &items[0].link);
	assert_true(list_is_empty(&items[1].link));
	list_remove(&items[1].link);
	assert_ptr_equal(items[0].link.next, &items[2].link);
	list_remove(&items[0].link);
	list_remove(&items[2].link);
	assert_true(list_is_empty(&list));
}

static void a_safe_walk_may_remove_what_it_visits(void **state)
{
	struct item items[5];
	struct list list;
	int n = 0;

	(void)state;
	make(items, 5, &list);
	LIST_FOR_EACH_SAFE (link, &list) {
		if (number_of(link) % 2 == 0) {
			list_remove(link);
		}
		n++;
	}
	assert_int_equal(n, 5);
	assert_int_equal(number_of(list.next), 1);
	assert_int_equal(number_of(list.prev), 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_list_is_empty),
		cmocka_unit_test(append_keeps_the_order_both_ways),
		cmocka_unit_test(insert_puts_behind_the_given_link),
		cmocka_unit_test(remove_unlinks_and_may_be_repeated),
		cmocka_unit_test(a_safe_walk_may_remove_what_it_visits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
