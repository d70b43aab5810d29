"""Compiled code for merges that go weight by weight (fused.py): one pass over the entries, a block in the processor's cache at a time.

Entries are fp32, or bf16 as 16 bits. ``values`` [part, entry] are the models', the base last where there is one. Compiled by numba at the
first call on a machine, and kept beside this file or in the user's cache. No kernel holds Python's lock.
"""

# mypy: ignore-errors

import numpy as np
from numba import njit, types
from numba.extending import overload

BLOCK = 1024  # entries; a block of each of a few models lies in the innermost cache
UPPER, SIGNLESS, ONE = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)
ZERO = np.float32(0)

kernel = njit(nogil=True, cache=True, error_model="numpy")
step = njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True)  # called by kernels alone
reduction = njit(nogil=True, cache=True, no_cpython_wrapper=True, fastmath={"reassoc", "contract", "nsz"})  # added up in any order


def narrowed(value, like):
    """An fp32 value as ``like`` is stored; bf16 to the nearest, ties to even."""


@overload(narrowed, inline="always")
def _narrowed(value, like):
    if like == types.uint16:

        def to_bf16(value, like):
            bits = np.float32(value).view(np.uint32)
            return np.uint16((bits + SIGNLESS + ((bits >> UPPER) & ONE)) >> UPPER)

        return to_bf16
    return lambda value, like: np.float32(value)


def widened(stored):
    """A stored entry in fp32."""


@overload(widened, inline="always")
def _widened(stored):
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << UPPER).view(np.float32)
    return lambda stored: stored


@kernel
def widen(stored, out):
    """A block in fp32."""
    for j in range(len(stored)):
        out[j] = widened(stored[j])


@reduction
def dot(a, b):
    """Inner product."""
    total = ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return np.float64(total)


@reduction
def products(x, a):
    """Inner products of x with itself and with a."""
    own, other = ZERO, ZERO
    for j in range(len(x)):
        own += x[j] * x[j]
        other += x[j] * a[j]
    return np.float64(own), np.float64(other)


@reduction
def length(a):
    """Sum of magnitudes."""
    total = ZERO
    for j in range(len(a)):
        total += abs(a[j])
    return np.float64(total)


@step
def fill(out, value):
    """One value everywhere."""
    for j in range(len(out)):
        out[j] = value


@step
def copy(x, out):
    """The same values."""
    for j in range(len(x)):
        out[j] = x[j]


@step
def subtract(d, base):
    """The change from the base, in place."""
    for j in range(len(d)):
        d[j] -= base[j]


@step
def difference(x, base, d):
    """The change from the base."""
    for j in range(len(x)):
        d[j] = x[j] - base[j]


@step
def add(total, d):
    """One more model's changes."""
    for j in range(len(d)):
        total[j] += d[j]


@step
def vote(total, d):
    """One more model's signs."""
    for j in range(len(d)):
        total[j] += np.float32(d[j] > 0) - np.float32(d[j] < 0)


@step
def times(d, weight):
    """Changes times a weight, in place."""
    for j in range(len(d)):
        d[j] *= weight


@step
def trim(d, least, top):
    """Changes whose magnitude is at least ``least`` and below ``top``, else 0, in place."""
    for j in range(len(d)):
        d[j] = d[j] if (abs(d[j]) >= least) & (abs(d[j]) < top) else ZERO


@step
def upper_bits(d, out):
    """The upper 15 bits of the magnitudes."""
    bits = d.view(np.uint32)
    for j in range(len(d)):
        out[j] = (bits[j] >> UPPER) & SIGNLESS


@step
def thin(d, draws, limits, factors, order, share):
    """Changes of whole rows, multiplied, or 0 where a draw is above its limit; ``order`` holds a row's columns by rank, or nothing."""
    if len(order) == 0:
        limit, factor = limits[0], factors[0]
        for j in range(len(d)):
            d[j] *= factor if draws[j] <= limit else ZERO
        return
    width = len(limits)
    for first in range(0, len(d), width):
        x, columns, own = d[first : first + width], order[first : first + width], draws[first : first + width]
        for rank in range(width):
            share[rank] = factors[rank] if own[rank] <= limits[rank] else ZERO
        for rank in range(width):
            x[columns[rank]] *= share[rank]


@step
def agree(d, weight, total, a, taken):
    """Add the changes whose sign is the elected one, and the weight where there is one."""
    for j in range(len(d)):
        agrees = ((d[j] > 0) & (total[j] >= 0)) | ((d[j] < 0) & (total[j] < 0))
        a[j] += d[j] if agrees else ZERO
        taken[j] += weight if agrees else ZERO


@step
def add_both(d, total, sizes):
    """One more model's changes, and their magnitudes."""
    for j in range(len(d)):
        total[j] += d[j]
        sizes[j] += abs(d[j])


@step
def agreeing(total, sizes, a):
    """What agrees in sign with the sum of the changes: half of it, and half of the sum of their magnitudes with its sign."""
    for j in range(len(a)):
        a[j] = np.float32(0.5) * (total[j] + (sizes[j] if total[j] >= 0 else -sizes[j]))


@step
def average(a, taken):
    """What was added over the weights that took part, in place."""
    for j in range(len(a)):
        a[j] /= taken[j] if abs(taken[j]) >= np.float32(1e-8) else np.float32(1)


@step
def onto(base, scale, a):
    """The base and so much of the change, in place of the change."""
    for j in range(len(a)):
        a[j] = a[j] * scale + base[j]


@step
def store(a, before, out):
    """The merged entries as they are stored; the number of those that differ from what was there before."""
    changed = 0
    for j in range(len(a)):
        out[j] = narrowed(a[j], out[j])
        changed += out[j] != narrowed(widened(before[j]), out[j])
    return changed


@step
def starts(counted):
    """Counts of digits become the first place of each."""
    total = np.uint32(0)
    for digit in range(len(counted)):
        own = counted[digit]
        counted[digit] = total
        total += own


@kernel
def counts(values, found):
    """Count the changes' magnitudes by their upper bits, the base being the last of ``values``: found [model, 32768] grows."""
    models, size = len(values) - 1, values.shape[1]
    base, x, bucket = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint16)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        b, d, u = base[: last - first], x[: last - first], bucket[: last - first]
        widen(values[models, first:last], b)
        for i in range(models):
            widen(values[i, first:last], d)
            subtract(d, b)
            upper_bits(d, u)
            row = found[i]
            for j in range(len(u)):
                row[u[j]] += 1


@kernel
def lower_counts(values, buckets, found):
    """Count the lower bits of the changes in each border's bucket [model, rank]: found [model, rank, 65536] grows."""
    models, size = len(values) - 1, values.shape[1]
    for i in range(models):
        for j in range(size):
            bits = np.float32(widened(values[i, j]) - widened(values[models, j])).view(np.uint32)
            for k in range(buckets.shape[1]):
                if ((bits >> UPPER) & SIGNLESS) == buckets[i, k]:
                    found[i, k, bits & np.uint32(0xFFFF)] += 1


@kernel
def gram(values, models, changes, found):
    """Inner products of the models, or of their changes from the last of ``values``: found [model, model] grows."""
    size = values.shape[1]
    base, held = np.empty(BLOCK, np.float32), np.empty((models, BLOCK), np.float32)
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        if changes:
            widen(values[-1, first:last], base[: last - first])
        for i in range(models):
            x = held[i, : last - first]
            widen(values[i, first:last], x)
            if changes:
                subtract(x, base[: last - first])
            for k in range(i + 1):
                product = dot(x, held[k, : last - first])
                found[i, k] += product
                if k < i:
                    found[k, i] += product


@kernel
def ranks(values, width, order):
    """The columns of every row of changes from the smallest magnitude to the largest, told apart by their upper bits: order [model, entry].

    Sorted by eight bits and then by the seven above (a radix sort): magnitudes alike stay in the order of their columns.
    """
    models, size = len(values) - 1, values.shape[1]
    base, x = np.empty(width, np.float32), np.empty(width, np.float32)
    keys, half = np.empty(width, np.uint16), np.empty(width, np.uint16)
    low, high = np.empty(256, np.uint32), np.empty(128, np.uint32)
    for first in range(0, size, width):
        widen(values[models, first : first + width], base)
        for i in range(models):
            widen(values[i, first : first + width], x)
            subtract(x, base)
            upper_bits(x, keys)
            fill(low, np.uint32(0))
            fill(high, np.uint32(0))
            for column in range(width):
                low[keys[column] & np.uint16(255)] += ONE
                high[keys[column] >> np.uint16(8)] += ONE
            starts(low)
            starts(high)
            for column in range(width):
                digit = keys[column] & np.uint16(255)
                place = low[digit]
                low[digit] = place + ONE
                half[place] = column
            row = order[i, first : first + width]
            for j in range(width):
                column = half[j]
                digit = keys[column] >> np.uint16(8)
                place = high[digit]
                high[digit] = place + ONE
                row[place] = column


@kernel
def kept_sizes(values, draws, limits, factors, order, found):
    """Sums of the changes' magnitudes before and after they are thinned: found [model, 2] grows."""
    models, size = len(values) - 1, values.shape[1]
    block = limits.shape[1] if order.shape[0] else BLOCK
    base, x, share = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    for first in range(0, size, block):
        last = min(first + block, size)
        b, d = base[: last - first], x[: last - first]
        widen(values[models, first:last], b)
        for i in range(models):
            widen(values[i, first:last], d)
            subtract(d, b)
            found[i, 0] += length(d)
            thin(d, draws[i, first:last], limits[i], factors[i], order[i, first:last] if order.shape[0] else order[:0, 0], share)
            found[i, 1] += length(d)


@kernel
def merged(values, models, changes, weights, borders, draws, limits, factors, order, elect, mean, scale, out, squares, dots, sums):
    """The whole merge of a chunk into ``out`` [entry].

    borders [model, 1 or 2]: the least magnitude kept, or the least left out at the top and the least kept; or nothing.
    draws [model, entry], limits and factors [model, 1 or rank], order [model, entry]: what is kept at random; or nothing.
    elect: 0 none, 1 by the sum of the changes, 2 by the number of their signs.
    Grow: squares and dots (with the merged entries) [part]; sums [2] with the merged entries' squares and the number of those that
    differ from the base (or from the first model).
    """
    parts, size = values.shape
    block = limits.shape[1] if order.shape[0] else BLOCK
    held, cut = np.empty((parts, block), np.float32), np.empty((models, block), np.float32)
    own, share = np.empty((3, block), np.float32), np.empty(block, np.float32)
    reference = parts - 1 if parts > models else 0
    in_one = elect == 1 and not mean  # the elected sum needs no second look at the changes
    for first in range(0, size, block):
        last = min(first + block, size)
        n = last - first
        total, taken, a, base = own[0, :n], own[1, :n], own[2, :n], held[parts - 1, :n]
        for i in range(parts):
            widen(values[i, first:last], held[i, :n])
        fill(total, ZERO)
        fill(taken, ZERO)
        for i in range(models):
            d = cut[i, :n]
            if changes:
                difference(held[i, :n], base, d)
            else:
                copy(held[i, :n], d)
            if borders.shape[1]:
                trim(d, borders[i, -1], borders[i, 0] if borders.shape[1] > 1 else np.float32(np.inf))
            if draws.shape[0]:
                thin(d, draws[i, first:last], limits[i], factors[i], order[i, first:last] if order.shape[0] else order[:0, 0], share)
            if weights[i] != 1:
                times(d, weights[i])
            if elect == 2:
                vote(total, d)
            elif in_one:
                add_both(d, total, taken)
            else:
                add(total, d)
        if in_one:
            agreeing(total, taken, a)
        elif elect:
            fill(a, ZERO)
            for i in range(models):
                agree(cut[i, :n], weights[i], total, a, taken)
            if mean:
                average(a, taken)
        else:
            copy(total, a)
        if changes:
            onto(base, scale, a)
        sums[0] += dot(a, a)
        sums[1] += store(a, values[reference, first:last], out[first:last])
        for i in range(parts):
            square, product = products(held[i, :n], a)
            squares[i] += square
            dots[i] += product
