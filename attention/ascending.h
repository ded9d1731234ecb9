/* ascending.h - binary search. */
#pragma once

/* Index of the first of n ascending values that is at least x; n if none is. */
static inline int first_at(const int *values, int n, int x) {
    int begin = 0, end = n;
    while (begin < end) {
        int middle = begin + (end - begin) / 2;
        if (values[middle] < x) begin = middle + 1;
        else end = middle;
    }
    return begin;
}
