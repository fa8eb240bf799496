// The second half of a feed-forward block: only rows of weights whose hidden unit is not zero are read.
#pragma once

#include "dot.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int kGroup = 128;        // hidden units that are added up apart: the order of a sum knows no threads, no batch
constexpr int kColumns = 1024;     // outputs of a piece of work: their sums stay in the innermost cache
constexpr int kRows = 16;          // rows of input of a piece of work

// The hidden units of one row that are not zero, from `first` to `last`.
template <class T>
EXPRUNE_INLINE int nonzero(const T* hidden, int64_t first, int64_t last, int32_t* list, float* values) {
  int count = 0;
  for (int64_t j = first; j < last; ++j) {
    const float value = widen(hidden[j]);
    list[count] = static_cast<int32_t>(j);
    values[count] = value;
    count += value != 0.0f;  // NaN counts
  }
  return count;
}

// sum[0:columns] += the listed rows, each times its value, in the order of the list.
template <class T>
static inline void add_rows(const T* weight, int64_t stride, const int32_t* list, const float* values, int count,
                            int64_t columns, float* sum) {
  int at = 0;
  for (; at + 4 <= count; at += 4) {
    const T* row[4];
    const T* next[4];  // asked for ahead: the rows lie apart by more than the hardware looks
    Vec value[4];
    for (int n = 0; n < 4; ++n) {
      row[n] = weight + list[at + n] * stride;
      next[n] = at + 4 + n < count ? weight + list[at + 4 + n] * stride : row[n];
      value[n] = all(values[at + n]);
    }
    int64_t i = 0;
    for (; i + W <= columns; i += W) {
      Vec s = load(sum + i);
      EXPRUNE_UNROLLED for (int n = 0; n < 4; ++n) {
        ask(next[n] + i);
        s = fma(value[n], load(row[n] + i), s);
      }
      store(sum + i, s);
    }
    if (i < columns) {
      const int rest = static_cast<int>(columns - i);
      Vec s = load_first(sum + i, rest);
      EXPRUNE_UNROLLED for (int n = 0; n < 4; ++n) s = fma(value[n], load_first(row[n] + i, rest), s);
      store_first(sum + i, s, rest);
    }
  }
  for (; at < count; ++at) {
    const T* row = weight + list[at] * stride;
    const Vec value = all(values[at]);
    int64_t i = 0;
    for (; i + W <= columns; i += W) store(sum + i, fma(value, load(row + i), load(sum + i)));
    if (i < columns) {
      const int rest = static_cast<int>(columns - i);
      store_first(sum + i, fma(value, load_first(row + i, rest), load_first(sum + i, rest)), rest);
    }
  }
}

// sum[0:columns] = what the hidden units of one row from `unit` on, a group at most, add to the outputs from `first` on.
template <class T>
static inline void add_group(const SecondLayer& layer, int64_t row, int64_t unit, int64_t first, int64_t columns,
                             float* sum) {
  int32_t list[kGroup];
  float values[kGroup];
  const T* hidden = static_cast<const T*>(layer.hidden) + row * layer.hidden_size;
  const int64_t stop = unit + kGroup < layer.hidden_size ? unit + kGroup : layer.hidden_size;
  const int count = nonzero(hidden, unit, stop, list, values);
  memset(sum, 0, sizeof(float) * static_cast<size_t>(columns));
  add_rows(static_cast<const T*>(layer.weight.data) + first, layer.weight.stride, list, values, count, columns, sum);
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
  const int64_t columns = last - first, count = (layer.hidden_size + kGroup - 1) / kGroup;
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
  const int64_t columns = last - first;
  float sums[kRows * kColumns], part[kColumns];
  memset(sums, 0, sizeof(float) * static_cast<size_t>(columns * (end - begin)));
  for (int64_t unit = 0; unit < layer.hidden_size; unit += kGroup) {
    for (int64_t row = begin; row < end; ++row) {
      add_group<T>(layer, row, unit, first, columns, part);
      float* sum = sums + (row - begin) * columns;
      for (int64_t i = 0; i < columns; ++i) sum[i] += part[i];
    }
  }
  for (int64_t row = begin; row < end; ++row) {
    write_outputs<T>(layer, row, first, columns, sums + (row - begin) * columns);
  }
}

// Units first .. last of one row, a group at most: multiplied by their dot products with the input, where they are not zero.
template <class T>
static inline void value_units(const ValueBranch& branch, int64_t row, int64_t first, int64_t last) {
  int32_t list[kGroup];
  float gates[kGroup];
  T* hidden = static_cast<T*>(branch.hidden) + row * branch.hidden_size;
  const int alive = nonzero(hidden, first, last, list, gates);
  for (int at = 0; at < alive; at += W) {
    const int count = alive - at < W ? alive - at : W;
    Vec total = zero();
    for (const Plane* plane = branch.input.planes; plane != branch.input.planes + branch.input.plane_count; ++plane) {
      const T* rows[W];
      for (int j = 0; j < count; ++j) {
        rows[j] = static_cast<const T*>(branch.weight.data) + list[at + j] * branch.weight.stride + plane->first;
      }
      const float* field = branch.input.data + plane->offset + row * plane->pitch;
      total = total + dots(count, field, rows, plane->last - plane->first);
    }
    float numbers[W];
    store(numbers, total);
    for (int j = 0; j < count; ++j) {
      const float value = numbers[j] + (branch.bias ? branch.bias[list[at + j]] : 0.0f);
      // Rounded before the product, as the layer's own result would be.
      hidden[list[at + j]] = narrow<T>(gates[at + j] * widen(narrow<T>(value)));
    }
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
