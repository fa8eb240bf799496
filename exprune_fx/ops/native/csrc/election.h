// The largest of many dot products: all classes are estimated from codes, those that may still win are computed whole.
#pragma once

#include "dot.h"
#include "integers.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

constexpr int64_t kClasses = 256;      // that a piece of work covers: their codes stay in the cache for all rows
constexpr int64_t kRowsAtOnce = 16;
constexpr int64_t kLeaders = 16;       // computed after each stage, at least: what they have is the bar for all others
constexpr int64_t kExactPiece = 64;

// One class and what it has.
struct Entry {
  float value;
  int32_t index;
};

EXPRUNE_INLINE bool is_nan(float value) { return value != value; }

// torch's order: what is not a number before all else, then the larger, then the first.
EXPRUNE_INLINE bool before(const Entry& a, const Entry& b) {
  if (is_nan(a.value) || is_nan(b.value)) {
    return is_nan(a.value) && (!is_nan(b.value) || a.index < b.index);
  }
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// The best of all entries that were offered, in order.
struct Best {
  Entry entries[kMostWinners];
  int64_t count = 0, most;

  EXPRUNE_INLINE_METHOD bool has(int32_t index) const {
    for (int64_t i = 0; i < count; ++i) {
      if (entries[i].index == index) return true;
    }
    return false;
  }

  EXPRUNE_INLINE_METHOD void offer(const Entry& entry) {
    if (count == most && !before(entry, entries[count - 1])) return;
    int64_t at = count < most ? count++ : count - 1;
    for (; at > 0 && before(entry, entries[at - 1]); --at) entries[at] = entries[at - 1];
    entries[at] = entry;
  }
};

// One row of input, and who is alive there.
struct Voter {
  float* input;     // [features], widened
  float* turned;    // [features]: in the basis of the codes
  int16_t* ticks;   // turned / tick, rounded; each stage's begin on a multiple of kTicks
  float* estimate;  // [classes]
  int32_t* sums;    // [classes]: in ticks and codes
  int32_t* alive;   // [pieces, kClasses + W]
  int32_t* counts;  // [pieces]
  float* leaders;   // [pieces]: the largest estimate
  float tick, common, slack, bar;
  float seen_norm[kMostStages], rest_norm[kMostStages];
  bool finite;
  Best held;        // the winners among those that were computed so far: they are not dropped
};

struct Count {
  const Election* election;
  Voter* voters;
  int64_t rows, pieces, stage;
};

EXPRUNE_INLINE int64_t stage_begin(const Election& e, int64_t stage) { return stage ? e.seen[stage - 1] : 0; }

EXPRUNE_INLINE const int16_t* stage_ticks(const Election& e, const Voter& voter, int64_t stage) {
  int64_t at = 0;
  for (int64_t s = 0; s < stage; ++s) at += padded_ticks(e.seen[s] - stage_begin(e, s));
  return voter.ticks + at;
}

EXPRUNE_INLINE float root_of(double value) {
#if EXPRUNE_ISA > 0
  return static_cast<float>(_mm_cvtsd_f64(_mm_sqrt_pd(_mm_set1_pd(value))));
#else
  return static_cast<float>(sqrt(value));
#endif
}

// A norm that is not too small, of squares that were summed in double precision.
EXPRUNE_INLINE float norm_of(double squares) { return root_of(squares) * 1.000001f + 1e-30f; }

// --- the input --------------------------------------------------------------------------------------------------------

template <class T>
static inline void read_row(const Election& e, int64_t row, Voter& voter) {
  const T* from = static_cast<const T*>(e.input) + row * e.features;
  double norm = 0, common = 0;
  for (int64_t i = 0; i < e.features; ++i) {
    const float x = widen(from[i]);
    voter.input[i] = x;
    norm += static_cast<double>(x) * x;
    if (e.center) common += static_cast<double>(e.center[e.features + i]) * x;
  }
  voter.common = static_cast<float>(common);
  voter.slack = e.slack[0] * norm_of(norm);
  voter.bar = __builtin_nanf("");
  voter.held.count = 0;
  voter.held.most = e.winners;
}

// The input as it is multiplied with the basis: it takes the place of the ticks, which are not there yet.
static inline void turn_piece(const void* context, int64_t index) {
  const Count& count = *static_cast<const Count*>(context);
  const Election& e = *count.election;
  const int64_t first = index * kExactPiece, end = first + kExactPiece, last = end < e.features ? end : e.features;
  for (int64_t r = 0; r < count.rows; ++r) {
    Voter& voter = count.voters[r];
    for (int64_t at = first; at < last; at += W) {
      const int n = last - at < W ? static_cast<int>(last - at) : W;
      const float* rows[W];
      for (int j = 0; j < n; ++j) rows[j] = e.basis + (at + j) * e.features;
      store_first(voter.turned + at, dots(n, voter.estimate, rows, e.features), n);
    }
  }
}

static inline void center_row(const Election& e, Voter& voter) {
  float* to = e.basis && !e.diagonal ? voter.estimate : voter.turned;
  double norm = 0;
  for (int64_t i = 0; i < e.features; ++i) {
    const float centered = e.center ? voter.input[i] - e.center[i] : voter.input[i];
    norm += static_cast<double>(centered) * centered;
    to[i] = e.diagonal ? centered * e.basis[i] : centered;
  }
  voter.slack += e.slack[1] * norm_of(norm) + e.slack[3];
}

// Norms and ticks of the turned input. By Cauchy-Schwarz no sum of products of ticks and codes leaves 32 bits.
static inline void cut_row(const Election& e, Voter& voter) {
  double whole = 0, seen = 0;
  float largest = 0;
  for (int64_t i = 0; i < e.features; ++i) {
    const float magnitude = voter.turned[i] < 0 ? -voter.turned[i] : voter.turned[i];
    if (!(magnitude <= largest)) largest = magnitude;
    whole += static_cast<double>(voter.turned[i]) * voter.turned[i];
  }
  const float by_range = largest * (1.0f / 32767.0f), by_sum = root_of(whole) * e.slack[4];
  voter.tick = by_range > by_sum ? by_range : by_sum;
  voter.slack += e.slack[2] * voter.tick;
  voter.finite = whole - whole == 0 && voter.slack - voter.slack == 0 && voter.common - voter.common == 0;
  const float inverse = voter.tick > 0 ? 1.0f / voter.tick : 0.0f;
  voter.finite = voter.finite && inverse - inverse == 0;
  if (!voter.finite) return;
  int16_t* to = voter.ticks;
  for (int64_t s = 0; s < e.stages; ++s) {
    const int64_t first = stage_begin(e, s), length = e.seen[s] - first, padded = padded_ticks(length);
    for (int64_t i = 0; i < length; ++i) {
      const float x = voter.turned[first + i];
      to[i] = to_nearest(x * inverse);
      seen += static_cast<double>(x) * x;
    }
    for (int64_t i = length; i < padded; ++i) to[i] = 0;
    to += padded;
    voter.seen_norm[s] = norm_of(seen);
    double rest = 0;
    for (int64_t i = e.seen[s]; i < e.features; ++i) rest += static_cast<double>(voter.turned[i]) * voter.turned[i];
    voter.rest_norm[s] = e.seen[s] < e.features ? norm_of(rest) : 0.0f;
  }
}

// --- estimates --------------------------------------------------------------------------------------------------------

// The first stage, for all classes of a piece.
static inline void estimate_all(const Election& e, Voter& voter, int64_t first, int64_t last, float* largest) {
  const int64_t length = e.seen[0];
  const int8_t* codes = e.codes + first * length;
  int32_t* sums = voter.sums + first;
  const int64_t count = last - first;
  for (int64_t j = 0; j < count; j += 4) {
    const int8_t* rows[4];
    for (int64_t l = 0; l < 4; ++l) rows[l] = codes + (j + l < count ? j + l : count - 1) * length;
    four_dots(rows, nullptr, voter.ticks, length, sums + j);
  }
  Vec best = all(-__builtin_inff());
  for (int64_t j = 0; j < count; j += W) {
    const int64_t n = count - j < W ? count - j : W;
    const Vec scale = load_some(e.numbers + first + j, n);
    const Vec shift = load_some(e.numbers + e.classes + first + j, n);
    const Vec estimate = floats(sums + j) * (all(voter.tick) * scale) + (shift + all(voter.common));
    store(voter.estimate + first + j, estimate);  // up to W - 1 more are written: the next piece's, or padding
    if (n == W) best = larger(best, estimate);
  }
  float lanes[W];
  store(lanes, best);
  *largest = lanes[0];
  for (int l = 1; l < W; ++l) *largest = lanes[l] > *largest ? lanes[l] : *largest;
  for (int64_t j = count / W * W; j < count; ++j) {
    if (voter.estimate[first + j] > *largest) *largest = voter.estimate[first + j];
  }
}

// A later stage, for those who are alive.
static inline void estimate_alive(const Election& e, Voter& voter, int64_t stage, const int32_t* list, int count,
                                  float* largest) {
  const int64_t length = e.seen[stage] - e.seen[stage - 1];
  const int8_t* codes = e.codes + e.classes * e.seen[stage - 1];
  const int16_t* ticks = stage_ticks(e, voter, stage);
  *largest = -__builtin_inff();
  const auto row = [&](int at) EXPRUNE_LAMBDA { return codes + list[at < count ? at : count - 1] * length; };
  for (int at = 0; at < 4 && at < count; ++at) ask(row(at), length);
  for (int at = 0; at < count; at += 4) {
    const int n = count - at < 4 ? count - at : 4;
    const int8_t *rows[4], *next[4];
    int32_t more[4];
    for (int l = 0; l < 4; ++l) rows[l] = row(at + l), next[l] = row(at + 4 + l);
    four_dots(rows, next, ticks, length, more);
    for (int l = 0; l < n; ++l) {
      const int32_t j = list[at + l];
      const int32_t sum = voter.sums[j] = static_cast<int32_t>(static_cast<uint32_t>(voter.sums[j]) +
                                                               static_cast<uint32_t>(more[l]));
      const float scale = voter.tick * e.numbers[j], shift = e.numbers[e.classes + j] + voter.common;
      voter.estimate[j] = static_cast<float>(sum) * scale + shift;
      if (voter.estimate[j] > *largest) *largest = voter.estimate[j];
    }
  }
}

// Who of a list cannot reach the bar after a stage is dropped from it. Returns how many are left.
static inline int drop(const Election& e, const Voter& voter, int64_t stage, int32_t* list, int count) {
  const float* seen_error = e.numbers + (2 + 2 * stage) * e.classes;
  const float* rest_error = seen_error + e.classes;
  const float reach = static_cast<float>(e.reach[stage]);
  const Vec seen = all(reach * voter.seen_norm[stage]), rest = all(reach * voter.rest_norm[stage]);
  int next = 0;
  for (int at = 0; at < count; at += W) {
    const int n = count - at < W ? count - at : W;
    Vec estimate, of_seen, of_rest;
    if (n == W && list[at + W - 1] - list[at] == W - 1) {  // neighbours: lists are in order
      const int32_t j = list[at];
      estimate = load(voter.estimate + j), of_seen = load(seen_error + j), of_rest = load(rest_error + j);
    } else {
      float a[W] = {}, b[W] = {}, c[W] = {};
      for (int l = 0; l < n; ++l) {
        const int32_t j = list[at + l];
        a[l] = voter.estimate[j], b[l] = seen_error[j], c[l] = rest_error[j];
      }
      estimate = load(a), of_seen = load(b), of_rest = load(c);
    }
    const Vec upper = estimate + (of_seen * seen + of_rest * rest) + all(voter.slack);
    const uint32_t bits = ~less(upper, all(voter.bar)) & lanes_below(n);
    compress(list + next, list + at, bits);
    next += __builtin_popcount(bits);
  }
  return next;
}

static inline void count_piece(const void* context, int64_t index) {
  const Count& count = *static_cast<const Count*>(context);
  const Election& e = *count.election;
  const int64_t first = index * kClasses, end = first + kClasses, last = end < e.classes ? end : e.classes;
  for (int64_t r = 0; r < count.rows; ++r) {
    Voter& voter = count.voters[r];
    int32_t* list = voter.alive + index * (kClasses + W);
    if (count.stage == 0) {
      voter.counts[index] = static_cast<int32_t>(last - first);
      for (int64_t j = 0; j < last - first; ++j) list[j] = static_cast<int32_t>(first + j);
      if (voter.finite) estimate_all(e, voter, first, last, voter.leaders + index);
    } else if (voter.finite) {
      voter.counts[index] = drop(e, voter, count.stage - 1, list, voter.counts[index]);
      if (count.stage < e.stages) {
        estimate_alive(e, voter, count.stage, list, voter.counts[index], voter.leaders + index);
      }
    }
  }
}

// --- whole values -----------------------------------------------------------------------------------------------------

// What the dense layer gives for the listed classes, rounded as its result is.
template <class T>
static inline void whole_values(const Election& e, const Voter& voter, const int32_t* list, int64_t count, float* values) {
  for (int64_t at = 0; at < count; at += W) {
    const int n = count - at < W ? static_cast<int>(count - at) : W;
    const T* rows[W];
    for (int j = 0; j < n; ++j) rows[j] = static_cast<const T*>(e.weight.data) + list[at + j] * e.weight.stride;
    float sums[W];
    store(sums, dots(n, voter.input, rows, e.features));
    for (int j = 0; j < n; ++j) {
      values[at + j] = widen(narrow<T>(e.bias ? sums[j] + e.bias[list[at + j]] : sums[j]));
    }
  }
}

// The largest number that is rounded to less than this one, or a smaller one; NaN if there is none.
template <class T>
static inline float below(float value) {
  const float infinity = __builtin_inff();
  if (!(value > -infinity)) return __builtin_nanf("");
  if (value == infinity) return 6e4f;
  float step = (value < 0 ? -value : value) * 5.9604645e-8f + 1e-38f, low = value - step;
  while (!(widen(narrow<T>(low)) < value)) {
    step *= 2;
    low = value - step;
  }
  float high = value;
  for (int i = 0; i < 6; ++i) {
    const float middle = low + (high - low) * 0.5f;
    if (widen(narrow<T>(middle)) < value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Computes those who look best after a stage, and raises the bar to what the last of the winners among them has.
template <class T>
static inline void raise_bar(const Election& e, Voter& voter, int64_t pieces) {
  Best pick;
  pick.most = e.winners > kLeaders ? e.winners : kLeaders;
  for (int64_t p = 0; p < pieces; ++p) pick.offer({voter.leaders[p], static_cast<int32_t>(p)});
  const float least = pick.count == pick.most ? pick.entries[pick.most - 1].value : -__builtin_inff();
  Best best;
  best.most = pick.most;
  for (int64_t p = 0; p < pieces; ++p) {
    if (!(voter.leaders[p] >= least)) continue;
    const int32_t* list = voter.alive + p * (kClasses + W);
    for (int32_t i = 0; i < voter.counts[p]; ++i) {
      if (voter.estimate[list[i]] >= least) best.offer({voter.estimate[list[i]], list[i]});
    }
  }
  if (voter.held.count + best.count < e.winners) return;
  int32_t list[kMostWinners];
  float values[kMostWinners];
  for (int64_t i = 0; i < best.count; ++i) list[i] = best.entries[i].index;
  whole_values<T>(e, voter, list, best.count, values);
  bool whole = true;
  for (int64_t i = 0; i < best.count; ++i) {
    if (!voter.held.has(list[i])) voter.held.offer({values[i], list[i]});
    whole = whole && !is_nan(values[i]);
  }
  voter.bar = whole ? below<T>(voter.held.entries[e.winners - 1].value) : __builtin_nanf("");
}

struct Finish {
  const Election* election;
  const Voter* voter;
  const int32_t* list;
  int64_t count;
  float* values;
};

template <class T>
static inline void finish_piece(const void* context, int64_t index) {
  const Finish& finish = *static_cast<const Finish*>(context);
  const int64_t first = index * kExactPiece, rest = finish.count - first;
  whole_values<T>(*finish.election, *finish.voter, finish.list + first, rest < kExactPiece ? rest : kExactPiece,
                  finish.values + first);
}

template <class T>
static inline void finish_row(const Election& e, Voter& voter, int64_t row, int64_t pieces, const Host& host) {
  int32_t* list = voter.sums;  // which nobody needs any more
  int64_t count = 0;
  for (int64_t p = 0; p < pieces; ++p) {
    const int32_t* alive = voter.alive + p * (kClasses + W);
    for (int32_t i = 0; i < voter.counts[p]; ++i) list[count++] = alive[i];
  }
  const Finish finish{&e, &voter, list, count, voter.estimate};
  const int64_t chunks = (count + kExactPiece - 1) / kExactPiece;
  if (chunks == 1) {
    finish_piece<T>(&finish, 0);
  } else {
    host.parallel(chunks, finish_piece<T>, &finish);
  }
  Best best = voter.held;
  for (int64_t i = 0; i < count; ++i) {
    if (!voter.held.has(list[i])) best.offer({voter.estimate[i], list[i]});
  }
  for (int64_t i = 0; i < e.winners; ++i) {
    e.indices[row * e.winners + i] = best.entries[i].index;
    if (e.values) static_cast<T*>(e.values)[row * e.winners + i] = narrow<T>(best.entries[i].value);
  }
}

// --- all of it --------------------------------------------------------------------------------------------------------

// Where a voter's numbers lie in one piece of memory.
struct Layout {
  int64_t pieces, features, ticks, classes, bytes;

  explicit Layout(const Election& e) {
    const int64_t line = 64;
    pieces = (e.classes + kClasses - 1) / kClasses;
    features = (e.features + line) / line * line;
    ticks = 0;
    for (int64_t s = 0; s < e.stages; ++s) ticks += padded_ticks(e.seen[s] - stage_begin(e, s));
    ticks = (ticks + line) / line * line;
    classes = ((e.classes > e.features ? e.classes : e.features) + line) / line * line;
    bytes = 4 * (2 * features + 2 * classes + pieces * (kClasses + W) + 2 * pieces) + 2 * ticks;
    bytes = (bytes + line - 1) / line * line;
  }

  void place(Voter& voter, char* at) const {
    voter.input = reinterpret_cast<float*>(at);
    voter.turned = voter.input + features;
    voter.estimate = voter.turned + features;
    voter.sums = reinterpret_cast<int32_t*>(voter.estimate + classes);
    voter.alive = voter.sums + classes;
    voter.counts = voter.alive + pieces * (kClasses + W);
    voter.leaders = reinterpret_cast<float*>(voter.counts + pieces);
    voter.ticks = reinterpret_cast<int16_t*>(voter.leaders + pieces);
  }
};

template <class T>
static inline void elect(const Election& e, const Host& host) {
  const Layout layout(e);
  const int64_t together = e.rows < kRowsAtOnce ? e.rows : kRowsAtOnce;
  char* memory = static_cast<char*>(host.scratch(kElection, layout.bytes * together));
  Voter voters[kRowsAtOnce];
  for (int64_t first = 0; first < e.rows; first += together) {
    Count count{&e, voters, e.rows - first < together ? e.rows - first : together, layout.pieces, 0};
    for (int64_t r = 0; r < count.rows; ++r) {
      layout.place(voters[r], memory + r * layout.bytes);
      read_row<T>(e, first + r, voters[r]);
      center_row(e, voters[r]);
    }
    if (e.basis && !e.diagonal) host.parallel((e.features + kExactPiece - 1) / kExactPiece, turn_piece, &count);
    for (int64_t r = 0; r < count.rows; ++r) cut_row(e, voters[r]);
    for (; count.stage <= e.stages; ++count.stage) {
      host.parallel(layout.pieces, count_piece, &count);
      for (int64_t r = 0; r < count.rows && count.stage < e.stages; ++r) {
        if (voters[r].finite) raise_bar<T>(e, voters[r], layout.pieces);
      }
    }
    for (int64_t r = 0; r < count.rows; ++r) finish_row<T>(e, voters[r], first + r, layout.pieces, host);
  }
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
