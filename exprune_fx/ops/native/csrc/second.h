// The second half of a feed-forward block: only rows of weights whose hidden unit is not zero are read.
#pragma once

#include "dot.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int64_t kLeastGroup = 128, kMostGroup = 512;  // hidden units that are added up apart
constexpr int64_t kGroups = 8;     // of them at least, where these are not too small
constexpr int64_t kUnits = kMostGroup;  // that are listed at once
constexpr int kColumns = 1024;     // outputs of a piece of work: their sums stay in the innermost cache
constexpr int kRows = 16;          // rows of input of a piece of work

// How many hidden units are added up apart. The order of a sum knows no threads, no batch: only how many there are.
EXPRUNE_INLINE int64_t group_of(int64_t hidden_size) {
  const int64_t wanted = (hidden_size / kGroups + kLeastGroup - 1) / kLeastGroup * kLeastGroup;
  return wanted < kLeastGroup ? kLeastGroup : wanted < kMostGroup ? wanted : kMostGroup;
}

// sum[0:columns] += N rows, each times its value; `next` are asked for meanwhile.
template <int N, class Row>
static inline void add_some_rows(const Row* row, const Row* next, const float* values, int64_t columns, float* sum) {
  Vec value[N];
  EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) value[n] = all(values[n]);
  int64_t i = 0;
  for (; i + W <= columns; i += W) {
    Vec s = load(sum + i);
    if (i % kLineNumbers<Row> == 0) EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) ask_for_line(next[n] + i);
    EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) s = fma(value[n], load(row[n] + i), s);
    store(sum + i, s);
  }
  if (i < columns) {
    const int rest = static_cast<int>(columns - i);
    Vec s = load_first(sum + i, rest);
    EXPRUNE_UNROLLED for (int n = 0; n < N; ++n) s = fma(value[n], load_first(row[n] + i, rest), s);
    store_first(sum + i, s, rest);
  }
}

// sum[0:columns] += the listed rows, each times its value, in the order of the list. `more` follow in it, which are not
// added: they will be next, and rows lie apart by more than the hardware looks ahead.
template <class Row>
static inline void add_rows(Row weight, int64_t stride, const int32_t* list, const float* values, int count, int more,
                            int64_t columns, float* sum) {
  for (int at = 0; at < count; at += 4) {
    Row row[4], next[4];
    for (int n = 0; n < 4; ++n) {
      const int last = count + more - 1, here = at + n, there = here + 4;
      row[n] = weight + list[here < last ? here : last] * stride;
      next[n] = weight + list[there < last ? there : last] * stride;
    }
    const float* of = values + at;
    switch (count - at) {
      case 1:
        add_some_rows<1>(row, next, of, columns, sum);
        break;
      case 2:
        add_some_rows<2>(row, next, of, columns, sum);
        break;
      case 3:
        add_some_rows<3>(row, next, of, columns, sum);
        break;
      default:
        add_some_rows<4>(row, next, of, columns, sum);
    }
  }
}

// The units of a row of hidden ones that are not zero: at most kUnits, in order.
struct Units {
  int count = 0;
  int32_t list[kUnits + W];
  float values[kUnits + W];

  // Those from `first` to `last`.
  template <class T>
  EXPRUNE_INLINE_METHOD void find(const T* hidden, int64_t first, int64_t last) {
    count = 0;
    for (int64_t j = first; j < last; j += W) {
      const Vec value = load_some(hidden + j, last - j);
      const uint32_t bits = nonzero(value);
      compress_places(list + count, static_cast<int32_t>(j), bits);
      compress(values + count, value, bits);
      count += __builtin_popcount(bits);
    }
  }
};

// Fills in units first .. last of one row.
template <class T>
static inline void find_units(const SecondLayer& layer, int64_t row, int64_t first, int64_t last, Units& units) {
  units.find(static_cast<const T*>(layer.hidden) + row * layer.hidden_size, first, last);
  if (!layer.rest) return;
  for (int n = 0; n < units.count; ++n) units.values[n] *= layer.scales[units.list[n]] * kSplitUnit;
}

// sum[0:columns] = what `count` of the units, from the one at `at` on, add to the outputs from `first` on.
template <class T>
static inline void add_units(const SecondLayer& layer, const Units& units, int at, int count, int64_t first,
                             int64_t columns, float* sum) {
  memset(sum, 0, sizeof(float) * static_cast<size_t>(columns));
  const int more = units.count - at - count;
  const int32_t* list = units.list + at;
  const float* values = units.values + at;
  if (layer.rest) {
    return add_rows(Split{layer.codes, layer.rest} + first, layer.outputs, list, values, count, more, columns, sum);
  }
  const T* weight = static_cast<const T*>(layer.weight.data) + first;
  add_rows(weight, layer.weight.stride, list, values, count, more, columns, sum);
}

template <class T>
EXPRUNE_INLINE void write_outputs(const SecondLayer& layer, int64_t row, int64_t first, int64_t columns,
                                  const float* sum) {
  T* result = static_cast<T*>(layer.result) + row * layer.outputs + first;
  for (int64_t i = 0; i < columns; ++i) result[i] = narrow<T>(sum[i] + (layer.bias ? layer.bias[first + i] : 0.0f));
}

// Outputs first .. last, at most kColumns of them, of one row, from the sums of all groups: [groups, rows, outputs].
template <class T>
static inline void join_groups(const SecondLayer& layer, int64_t row, int64_t first, int64_t last, const float* groups) {
  const int64_t size = group_of(layer.hidden_size), count = (layer.hidden_size + size - 1) / size;
  const int64_t columns = last - first;
  float sums[kColumns] = {};
  for (int64_t group = 0; group < count; ++group) {
    const float* part = groups + (group * layer.rows + row) * layer.outputs + first;
    for (int64_t i = 0; i < columns; ++i) sums[i] += part[i];
  }
  write_outputs<T>(layer, row, first, columns, sums);
}

// Outputs first .. last, at most kColumns of them, of rows begin .. end of the input, at most kRows of them.
template <class T>
static inline void second_columns(const SecondLayer& layer, int64_t first, int64_t last, int64_t begin, int64_t end) {
  const int64_t columns = last - first, group = group_of(layer.hidden_size);
  float sums[kRows * kColumns], part[kColumns];
  Units units;
  memset(sums, 0, sizeof(float) * static_cast<size_t>(columns * (end - begin)));
  for (int64_t unit = 0; unit < layer.hidden_size; unit += group) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t stop = unit + group < layer.hidden_size ? unit + group : layer.hidden_size;
      find_units<T>(layer, row, unit, stop, units);
      add_units<T>(layer, units, 0, units.count, first, columns, part);
      float* sum = sums + (row - begin) * columns;
      for (int64_t i = 0; i < columns; ++i) sum[i] += part[i];
    }
  }
  for (int64_t row = begin; row < end; ++row) {
    write_outputs<T>(layer, row, first, columns, sums + (row - begin) * columns);
  }
}

// Units first .. last of one row, at most kUnits: multiplied by their dot products with the input, where they are not zero.
template <class T>
static inline void value_units(const ValueBranch& branch, int64_t row, int64_t first, int64_t last) {
  T* hidden = static_cast<T*>(branch.hidden) + row * branch.hidden_size;
  Units gates;
  gates.find(hidden, first, last);
  for (int at = 0; at < gates.count; at += W) {
    const int count = gates.count - at < W ? gates.count - at : W;
    const int32_t* list = gates.list + at;
    Vec total = zero();
    for (const Plane* plane = branch.input.planes; plane != branch.input.planes + branch.input.plane_count; ++plane) {
      const T* rows[W];
      for (int j = 0; j < count; ++j) {
        rows[j] = static_cast<const T*>(branch.weight.data) + list[j] * branch.weight.stride + plane->first;
      }
      const float* field = branch.input.data + plane->offset + row * plane->pitch;
      total = total + dots(count, field, rows, plane->last - plane->first);
    }
    float numbers[W];
    store(numbers, total);
    for (int j = 0; j < count; ++j) {
      const float value = numbers[j] + (branch.bias ? branch.bias[list[j]] : 0.0f);
      // Rounded before the product, as the layer's own result would be.
      hidden[list[j]] = narrow<T>(gates.values[at + j] * widen(narrow<T>(value)));
    }
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
